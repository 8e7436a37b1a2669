"""See `dunnage.keeper.main`."""

import sys

from dunnage.keeper.main import main

sys.exit(main(sys.argv[1:]))
