"""What came out, over REST: runs, models, versions and their files, notices, deliveries; and what a person may do about them."""

from services.registry_bridge.api import history, logs, models, notices, runs, status, versions

routers = (status.router, models.router, runs.router, logs.router, versions.router, notices.router, history.router)
