#!/bin/bash
# Runs once, when the volume is new: two databases, two roles, each with its own password and nothing of the other's.
# The passwords come from the environment, so that they stand on no command line.
set -eu
psql --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'END_OF_FILE'
\getenv ledger_password LEDGER_PASSWORD
\getenv mlflow_password MLFLOW_PASSWORD
CREATE ROLE headrace LOGIN PASSWORD :'ledger_password';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow_password';
CREATE DATABASE headrace OWNER headrace TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8';
CREATE DATABASE mlflow OWNER mlflow TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8';
REVOKE CONNECT ON DATABASE headrace, mlflow FROM PUBLIC;
END_OF_FILE
