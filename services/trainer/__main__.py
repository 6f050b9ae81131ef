"""`python -m services.trainer`: a worker of the compute class in the settings, until SIGTERM."""

from services.trainer.app import main

raise SystemExit(main())
