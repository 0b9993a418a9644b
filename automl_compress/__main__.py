"""`python -m automl_compress`."""

import sys

from automl_compress.cli import main

sys.exit(main())
