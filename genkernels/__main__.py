"""``python -m genkernels`` is the command ``genkernels``."""

import sys

from .cli import main

sys.exit(main())
