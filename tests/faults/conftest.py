import sys
from pathlib import Path

# The maker of archives is shared with the tests of the data.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
