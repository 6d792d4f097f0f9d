"""Tiny models for tests: real architectures and real fast tokenizers, random weights, made in a second.

The same call gives the same bytes in every process. They match the released models in all that a loader depends on: the
tokens that a tokenizer adds, its padding token or the lack of one, tied embeddings, and the head in the checkpoint.
"""

from tests.support.models.corpus import CORPUS as CORPUS
from tests.support.models.corpus import VOCABULARY as VOCABULARY
from tests.support.models.decoders import make_gemma as make_gemma
from tests.support.models.decoders import make_gemma2 as make_gemma2
from tests.support.models.decoders import make_gpt2 as make_gpt2
from tests.support.models.decoders import make_gpt_neox as make_gpt_neox
from tests.support.models.decoders import make_llama as make_llama
from tests.support.models.decoders import make_mistral as make_mistral
from tests.support.models.decoders import make_phi as make_phi
from tests.support.models.decoders import make_phi3 as make_phi3
from tests.support.models.decoders import make_qwen2 as make_qwen2
from tests.support.models.decoders import make_qwen3 as make_qwen3
from tests.support.models.encoders import make_bert as make_bert
from tests.support.models.encoders import make_distilbert as make_distilbert
from tests.support.models.encoders import make_modernbert as make_modernbert
from tests.support.models.encoders import make_roberta as make_roberta
from tests.support.models.further import FURTHER_MAKERS
from tests.support.models.mixtures import make_deepseek_v3 as make_deepseek_v3
from tests.support.models.mixtures import make_gpt_oss as make_gpt_oss
from tests.support.models.mixtures import make_llama4_text as make_llama4_text
from tests.support.models.mixtures import make_mixtral as make_mixtral
from tests.support.models.mixtures import make_phimoe as make_phimoe
from tests.support.models.mixtures import make_qwen3_moe as make_qwen3_moe
from tests.support.models.seq2seq import make_bart as make_bart
from tests.support.models.seq2seq import make_t5 as make_t5

MAKERS = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "gpt_neox": make_gpt_neox,
    "mistral": make_mistral,
    "qwen2": make_qwen2,
    "qwen3": make_qwen3,
    "gemma": make_gemma,
    "gemma2": make_gemma2,
    "phi": make_phi,
    "phi3": make_phi3,
    "mixtral": make_mixtral,
    "qwen3_moe": make_qwen3_moe,
    "gpt_oss": make_gpt_oss,
    "deepseek_v3": make_deepseek_v3,
    "llama4_text": make_llama4_text,
    "phimoe": make_phimoe,
    "bert": make_bert,
    "roberta": make_roberta,
    "distilbert": make_distilbert,
    "modernbert": make_modernbert,
    "t5": make_t5,
    "bart": make_bart,
    **FURTHER_MAKERS,
}
