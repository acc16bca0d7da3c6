"""How fast the iterations solve the relation in each family, at the weights that it draws: a table.

    python tests/benchmarks/families.py

Each model has the family's published shape, but four layers, all implicit, and reads four rows of 32 random tokens. A
cell is the worst relative residual of a row and layer after so many iterations. The last column is the mean factor of
an iteration from the third to the sixth: below 1 the map contracts. Pretrained layers are further from linear than
drawn ones.
"""

import torch
from tabulate import tabulate

import imbert_hf
from imbert_hf import Anderson, FixedPoint, GradientDescent
from imbert_hf.evaluation.data.loading import FAMILIES
from imbert_hf.evaluation.stability.layers import plain_layers
from imbert_hf.evaluation.stability.solves import residual_history


LAYERS, ROWS, LENGTH, ITERATIONS = 4, 4, 32, 6
SOLVERS = {"fixed_point": FixedPoint(), "anderson": Anderson(), "gradient_descent": GradientDescent()}
METHOD = {"theta": 1.0, "vector_field": "increment", "initial_guess": "explicit"}


def layers_of_drawn(family: str):
    config_class = FAMILIES[family]
    named = {**config_class.attribute_map}.get("num_hidden_layers", "num_hidden_layers")
    torch.manual_seed(0)
    config = config_class(**{named: LAYERS}, im_layers="all")
    model = getattr(imbert_hf, config_class.__name__.replace("Config", "Model"))(config).eval()
    return plain_layers(model, {"input_ids": torch.randint(1000, 20000, (ROWS, LENGTH))})


def lines(family: str):
    layers = layers_of_drawn(family)
    for gamma in (0.5, 1.0):
        for name, solver in SOLVERS.items():
            found = [residual_history(F, x, solver, ITERATIONS, step_size=gamma, **METHOD) for F, x in layers]
            residuals = torch.stack(found).amax((0, 2)).tolist()
            cells = {f"after {k}": f"{residuals[k]:.1e}" for k in (0, 1, 2, 3, ITERATIONS)}
            factor = (residuals[ITERATIONS] / residuals[3]) ** (1 / (ITERATIONS - 3))
            yield {"family": family, "gamma": gamma, "solver": name, **cells, "factor": f"{factor:.2f}"}


if __name__ == "__main__":
    print(tabulate((line for family in FAMILIES for line in lines(family)), "keys", "pipe", disable_numparse=True))
