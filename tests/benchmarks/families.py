"""How well three iterations solve the relation in each family, at the weights that it draws: a table.

    python tests/benchmarks/families.py

Each model has the family's published shape, but four layers, all implicit, and reads four rows of 32 random tokens. A
cell is the worst relative residual of a row and layer. Pretrained layers are further from linear than drawn ones.
"""

import torch
from tabulate import tabulate

import imbert_hf
from imbert_hf.evaluation.data.loading import FAMILIES


LAYERS, ROWS, LENGTH, ITERATIONS = 4, 4, 32, 3
SOLVES = [(solver, gamma) for gamma in (0.5, 1.0) for solver in ("fixed_point", "anderson")]


@torch.no_grad()
def residuals(family: str) -> dict[str, str]:
    config_class = FAMILIES[family]
    named = {**config_class.attribute_map}.get("num_hidden_layers", "num_hidden_layers")
    torch.manual_seed(0)
    config = config_class(**{named: LAYERS}, im_layers="all", im_iterations=ITERATIONS)
    model = getattr(imbert_hf, config_class.__name__.replace("Config", "Model"))(config).eval()
    tokens = torch.randint(1000, 20000, (ROWS, LENGTH))
    line = {"family": family}
    for config.im_solver, config.im_step_size in SOLVES:
        found = model(tokens, output_im_statistics=True).im_residuals
        line[f"{config.im_solver}, gamma {config.im_step_size:g}"] = f"{max(map(torch.max, found)):.1e}"
    return line


if __name__ == "__main__":
    print(tabulate(map(residuals, FAMILIES), "keys", "pipe", disable_numparse=True))
