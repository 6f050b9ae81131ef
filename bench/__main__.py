"""`python -m bench`."""

import sys

from bench.flow import main

sys.exit(main())
