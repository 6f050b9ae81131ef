"""`python -m services.registry_bridge`: the bridge's worker, until SIGTERM."""

from services.registry_bridge.app import main

raise SystemExit(main())
