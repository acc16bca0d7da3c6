"""Distils a fine-tuned IM-BERT into the family's plain model, such as BERT, which costs what BERT costs.

    pip install '.[glue]'    # in a clone of the repository

    python examples/distill.py --teacher outputs/sst2-im-bert --task sst2 --learning_rate 5e-5 \
        --output_dir outputs/sst2-distilled
    python examples/distill.py --teacher outputs/tickets --train_file tickets.csv --text_column_names body \
        --label_column_name queue --output_dir outputs/tickets-distilled

The student starts from the teacher's weights, read as the plain model (the parameters have the same names), and learns
the teacher's answers to the texts to train on alone, not their labels: with p and q the softmax of the teacher's and of
the student's logits divided by the temperature T, its loss is T^2 KL(p || q) (Hinton, Vinyals and Dean, arXiv
1503.02531, section 2). What comes out is a checkpoint of the family itself.

Every other argument is one of finetune.py; a plain classifier of these families may be the teacher, too. It exits with
0 when done, with 1 where the run failed or was interrupted, and with 2 for wrong arguments.
"""

import argparse
import copy
import sys
from typing import Any

import finetune
import torch
from accelerate import PartialState
from finetune_problems import SINGLE
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import Trainer

from imbert_hf.command_line import Parser, run
from imbert_hf.evaluation.data.arguments import parse_label_map
from imbert_hf.evaluation.data.classifier import Classifier, load_classifier
from imbert_hf.evaluation.data.loading import FAMILIES
from imbert_hf.evaluation.data.tasks import Task


class DistillationTrainer(Trainer):
    """A Trainer whose training loss is the distance to a teacher's answers. Evaluations have the student's loss.

    Args:
        teacher: of load_classifier; its labels are put into the data's order, which is the student's.
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


def student_of(teacher: Classifier) -> Any:
    """The family's plain model with the teacher's weights, whose labels are in the order of the data's."""
    model = teacher.model
    if hasattr(model, "to_plain"):
        student = model.to_plain()
    else:  # made anew: a loaded model is saved under the names of the file that it came from
        student = type(model)(copy.deepcopy(model.config))
        student.load_state_dict(model.state_dict())
    head = getattr(student.classifier, "out_proj", student.classifier)  # of RoBERTa and ELECTRA; of the others
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter[list(teacher.order)])
    labels = teacher.task.labels
    student.config.id2label, student.config.label2id = dict(enumerate(labels)), {n: i for i, n in enumerate(labels)}
    student.config.problem_type = SINGLE
    return student


class Distillation:
    """What finetune.py takes in place of its own: how a student is made, and its Trainer."""

    def __init__(self, teacher: str, temperature: float, label_map: str | None):
        if not 0 < temperature < float("inf"):
            raise ValueError(f"--temperature must be a finite number > 0, got {temperature}.")
        self.path, self.temperature, self.label_map = teacher, temperature, label_map

    def load(self, name: str, connection: str, im: dict[str, Any], task: Task, max_seq_length: int) -> tuple[Any, Any]:
        if task.problem_type != SINGLE:
            raise ValueError(f"distill.py takes {SINGLE} alone, and {task.name} is {task.problem_type}.")
        label_map = parse_label_map(self.label_map, task.own)
        teacher = load_classifier(self.path, task, label_map=label_map, max_length=max_seq_length)
        if (family := teacher.model.config.model_type.removeprefix("im")) not in FAMILIES:
            raise ValueError(f"--teacher {name} must be of {', '.join(FAMILIES)}, got a checkpoint of {family!r}.")
        self.teacher = teacher
        return student_of(teacher), teacher.tokenizer

    def trainer(self, **kwargs) -> DistillationTrainer:
        return DistillationTrainer(teacher=self.teacher, temperature=self.temperature, **kwargs)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("distill.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder or Hub id of a fine-tuned classifier")
    parser.add_argument("--temperature", type=float, default=2.0, help="of the softmax (default: 2)")
    parser.add_argument("--label-map", help="of the teacher: negative=0,positive=1, where its config does not tell")
    own, others = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    for name in ("model_name_or_path", "connection", "defence", "label_smoothing_factor"):
        if any(word.split("=")[0].lstrip("-").replace("-", "_") == name for word in others):
            parser.error(f"--{name} must be left out: the student has the teacher's weights and its loss.")
    try:
        distillation = Distillation(own.teacher, own.temperature, own.label_map)
    except ValueError as error:
        parser.error(str(error))
    words = [*others, "--connection", "bert", "--model_name_or_path", own.teacher]
    about = {"teacher": own.teacher, "temperature": own.temperature}
    finetune.main(words, prog=parser.prog, load=distillation.load, trainer_class=distillation.trainer, **about)


if __name__ == "__main__":
    run("distill.py", main)
    PartialState().destroy_process_group()  # as finetune.py
