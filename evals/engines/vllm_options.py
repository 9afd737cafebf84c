"""Options of the vLLM engine, under vLLM's own names where it has one. The trainer's section `vllm` is this class."""

from pydantic import BaseModel, ConfigDict, Field


class VLLMOptions(BaseModel):
    """How vLLM is run. The defaults serve a laptop's CPU and one GPU."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    max_model_len: int = Field(default=0, ge=0)
    """longest prompt + completion in tokens; 0: as the model says. Less of it needs less memory"""
    max_num_seqs: int = Field(default=256, ge=1)
    """sequences decoded together"""
    kv_cache_memory_bytes: int = Field(default=0, ge=0)
    """memory for keys and values; 0: what max_num_seqs sequences need, on a CPU at most 4 GiB and a quarter of what is
    free, on a GPU what gpu_memory_utilization leaves"""
    gpu_memory_utilization: float = Field(default=0.0, ge=0, le=1)
    """share of each GPU's memory for weights, keys and values; 0: 0.9, in training what the trainer leaves"""
    enforce_eager: bool | None = None
    """without torch.compile and CUDA graphs; unset: on a CPU, where compiling takes minutes, and not on a GPU"""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share one copy of the model"""
    data_parallel_size: int = Field(default=1, ge=1)
    """copies of the model, each in a process of its own and on GPUs of its own; prompts are dealt out among them"""
    float32_head: bool = False
    """logits in float32 where the weights are bfloat16: log-probabilities are closer to the trainer's"""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each process; 0: as OMP_NUM_THREADS says, else all cores"""
