"""examples/finetune.py under FSDP2 on a CPU, for test_distributed.py: accelerate is told that the CPU is a device."""

import os

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from finetune import main
from launching import leave


if __name__ == "__main__":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    main()
    assert AcceleratorState().distributed_type == DistributedType.FSDP
    PartialState().destroy_process_group()
    leave()
