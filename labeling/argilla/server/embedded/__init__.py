"""Files that run in Argilla's private environment, as scripts: they import each other by bare names."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for the tests, which import them from here
