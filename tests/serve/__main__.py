"""`make test-serve`: install vLLM into an environment of its own, once, then run tests/serve.

python -m tests.serve [options for pytest]
"""

import subprocess
import sys

from tests.real.packages import say
from tests.serve.vllm_environment import make_environment


def main() -> int:
    """Install and test; pytest's exit code."""
    make_environment()
    say("tests", "vLLM starts once for each artifact: about a minute each on 2 quiet cores")
    command = [sys.executable, "-m", "pytest", "tests/serve", "--durations=10", *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
