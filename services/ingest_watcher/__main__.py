"""`python -m services.ingest_watcher`: run the watcher until SIGTERM."""

from services.ingest_watcher.app import main

raise SystemExit(main())
