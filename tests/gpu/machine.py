"""What the GPU machine already has: Python, CUDA's libraries and most of what torch and transformers need.

The versions of machine.txt are known. The others of PRESENT are there in a version that nobody has written down, so that
`kit.unmet` compares them with what the packages of the kit ask for, on the machine itself.
"""

PYTHON = (3, 12)
CUDA = "130"  # as in the names of bitsandbytes' libraries: CUDA 13.0
PLATFORM = "x86_64"
GLIBC = (2, 28)  # wheels for this version of the C library, and older, run there
ARCHIVE_BYTES = 64 << 20  # at most, of sources and wheels together

PRESENT = frozenset(
    """
    absl-py accelerate aiohappyeyeballs aiohttp aiosignal annotated-doc anyio attrs certifi charset-normalizer click
    cloudpickle colorama cuda-bindings cuda-pathfinder cuda-toolkit einops filelock frozenlist fsspec h11 hf-xet
    httpcore httpx huggingface-hub hypothesis idna iniconfig jinja2 joblib lxml markdown-it-py markupsafe mdurl mpmath
    msgpack multidict narwhals networkx ninja numpy nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime
    nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13
    nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx packaging pandas pip pluggy portalocker propcache
    protobuf psutil py-cpuinfo pyarrow pygments pytest python-dateutil pyyaml regex requests rich sacrebleu safetensors
    scikit-learn scipy setuptools shellingham six sortedcontainers sympy tabulate tensorboard threadpoolctl tokenizers
    torch tqdm transformers triton typer typing-extensions urllib3 xxhash yarl
    """.split()
)
# Present there, but in a version that may be another than the one our figures are for.
CARRIED = frozenset({"peft"})
