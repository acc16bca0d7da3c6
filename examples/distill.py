"""Distils a fine-tuned IM-BERT into plain BERT weights, which cost what BERT costs.

    pip install '.[glue]'    # in a clone of the repository

    python examples/distill.py --teacher outputs/sst2-im-bert --task sst2 --learning_rate 5e-5 \
        --output_dir outputs/sst2-distilled

The student starts from the teacher's weights, read as BERT (the parameters have the same names), and learns the
teacher's answers from the texts of the task's train split alone, not from their labels: with p and q the softmax of the
teacher's and the student's logits divided by the temperature T, its loss is T^2 KL(p || q) (Hinton, Vinyals and Dean,
arXiv 1503.02531, section 2). What comes out is a checkpoint of BertForSequenceClassification.

Every other argument is one of finetune.py; any classifier with BERT's parameters may be the teacher.
"""

import argparse
import sys
import tempfile
from functools import partial
from typing import Any, NoReturn

import finetune
import torch
from accelerate import PartialState
from finetune_data import TASKS
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import BertConfig, BertForSequenceClassification, Trainer

from imbert_hf.evaluation.data.arguments import parse_label_map
from imbert_hf.evaluation.data.classifier import Classifier, load_classifier
from imbert_hf.evaluation.data.tasks import find_task


class DistillationTrainer(Trainer):
    """A Trainer whose training loss is the distance to a teacher's answers. Evaluations have BERT's loss.

    Args:
        teacher: of load_classifier; its labels are put into GLUE's order, which is the student's.
        temperature: T > 0.
        kwargs: of the Trainer.
    """

    def __init__(self, *, teacher: Classifier, temperature: float, **kwargs):
        super().__init__(**kwargs)
        self.teacher, self.temperature = teacher, temperature
        teacher.model.to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, *args, **kwargs):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, *args, **kwargs)
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**inputs)
        with torch.no_grad(), torch.autocast(self.args.device.type, enabled=False):  # its solves keep their precision
            wanted = self.teacher.logits(inputs)
        loss = distillation_loss(outputs.logits.float(), wanted, self.temperature)
        return (loss, outputs) if return_outputs else loss


def distillation_loss(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(wanted / T) || softmax(logits / T)), the mean over a batch of (batch, labels) logits."""
    q, p = (log_softmax(values / temperature, dim=-1) for values in (logits, wanted))
    return temperature**2 * kl_div(q, p, reduction="batchmean", log_target=True)


def save_as_bert(teacher: Classifier, folder: str) -> None:
    """The teacher's weights as a checkpoint of BERT whose labels are in GLUE's order.

    Raises:
        ValueError: the teacher's parameters are not BERT's.
    """
    labels = dict(enumerate(teacher.task.labels))
    kept = {n: v for n, v in teacher.model.config.to_dict().items() if not n.startswith("im_")}
    for name in ("model_type", "auto_map", "architectures", "label2id"):
        kept.pop(name, None)
    student = BertForSequenceClassification(BertConfig(**kept | {"id2label": labels}))
    state = dict(teacher.model.state_dict())
    for name in ("classifier.weight", "classifier.bias"):
        if name in state:
            state[name] = state[name][list(teacher.order)]
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        what = str(error).splitlines()[1].strip()
        raise ValueError(f"--teacher {teacher.path} must have BERT's parameters: {what}") from None
    student.save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--teacher", required=True, help="folder or Hub id of a fine-tuned classifier")
    parser.add_argument("--temperature", type=float, default=2.0, help="of the softmax (default: 2)")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--label-map", help="of the teacher: negative=0,positive=1, where its config does not tell")
    parser.add_argument("--max_seq_length", type=int, default=128)
    words = sys.argv[1:] if argv is None else argv
    with tempfile.TemporaryDirectory() as folder:
        try:
            own, others = parser.parse_known_args(words)
            for name in ("model_name_or_path", "connection", "r3f"):
                if any(word.split("=")[0].lstrip("-").replace("-", "_") == name for word in others):
                    raise ValueError(f"--{name} must be left out: the student has the teacher's weights and its loss.")
            if not 0 < own.temperature < float("inf"):
                raise ValueError(f"--temperature must be a finite number > 0, got {own.temperature}.")
            options = {"label_map": parse_label_map(own.label_map), "max_length": own.max_seq_length}
            teacher = load_classifier(own.teacher, find_task(own.task), **options)
            save_as_bert(teacher, folder)
        except ValueError as error:
            sys.exit(f"distill.py: error: {' '.join(str(error).split())}")
        trainer: Any = partial(DistillationTrainer, teacher=teacher, temperature=own.temperature)
        fixed = ["--task", own.task, "--max_seq_length", str(own.max_seq_length), "--connection", "bert"]
        about = {"teacher": own.teacher, "temperature": own.temperature}
        finetune.main([*others, *fixed, "--model_name_or_path", folder], trainer, about)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()  # as finetune.py
