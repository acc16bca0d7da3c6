"""IMBertConfig: round trip, presets, and one clear sentence for every wrong value."""

import json
from enum import Enum

import numpy as np
import pytest
from families import FAMILIES
from tiny import TINY, imbert_config
from transformers import AutoConfig, BertConfig

import imbert_hf
from imbert_hf import IMBertConfig, IMBertForSequenceClassification, IMBertModel
from imbert_hf.configuration_imbert import IM_FIELDS


def test_fields_are_those_of_the_design():
    config = IMBertConfig()
    assert {name: getattr(config, name) for name in IM_FIELDS} == {
        "im_theta": 1.0,
        "im_layers": [-1],
        "im_vector_field": "increment",
        "im_step_size": 1.0,
        "im_solver": "fixed_point",
        "im_iterations": 3,
        "im_eval_iterations": None,
        "im_tolerance": 0.0,
        "im_initial_guess": "explicit",
        "im_learning_rate": 0.02,
        "im_damping": 1.0,
        "im_anderson_memory": 3,
        "im_gradient": "implicit",
        "im_gradient_iterations": None,
        "im_consistency": 0.0,
    }


def test_json_round_trip(tmp_path):
    config = imbert_config(im_theta=0.5, im_layers=[0, -1], im_solver="anderson", im_eval_iterations=5, num_labels=4)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["im_theta"] == 0.5
    assert written["im_layers"] == [0, -1]
    assert written["model_type"] == "imbert"
    for loaded in (IMBertConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is IMBertConfig
        assert {k: getattr(loaded, k) for k in IM_FIELDS} == {k: getattr(config, k) for k in IM_FIELDS}
        assert loaded.auto_map == config.auto_map
        assert loaded.num_labels == 4


def test_auto_map_names_every_class_and_keeps_entries_of_others():
    import imbert_hf.modeling_imbert as modeling

    config = IMBertConfig(
        auto_map={"AutoTokenizer": "tok.Tok", "AutoModel": "somebody/else--modeling_imbert.IMBertModel"}
    )
    assert config.auto_map["AutoTokenizer"] == "tok.Tok"
    assert config.auto_map["AutoModel"] == "modeling_imbert.IMBertModel"
    for auto_class, reference in config.auto_map.items():
        if reference.startswith("modeling_imbert."):
            name = reference.split(".")[1]
            assert (
                getattr(modeling, name).__name__
                == name
                == auto_class.replace("AutoModel", "IMBert", 1) + ("Model" if auto_class == "AutoModel" else "")
            )


def test_an_edited_default_stays_with_its_config():
    IMBertConfig().im_layers.append(0)
    assert IMBertConfig().im_layers == [-1]


def test_paper_preset():
    config = IMBertConfig.paper(im_iterations=5, num_labels=3)
    assert (config.im_solver, config.im_gradient, config.im_vector_field) == ("gradient_descent", "unrolled", "layer")
    assert (config.im_theta, config.im_layers, config.im_iterations, config.num_labels) == (1.0, "all", 5, 3)
    assert IMBertConfig.paper(im_vector_field="increment").im_vector_field == "increment"


def test_a_choice_may_be_of_an_enum():
    class Solver(str, Enum):
        FAST = "anderson"

    assert IMBertConfig(im_solver=Solver.FAST).im_solver == "anderson"


def test_plain_numbers_are_stored():
    config = IMBertConfig(
        im_theta=1, im_step_size=np.float32(0.5), im_iterations=np.int64(2), im_layers=(0, np.int64(1))
    )
    assert type(config.im_theta) is float
    assert type(config.im_step_size) is float
    assert type(config.im_iterations) is int
    assert config.im_layers == [0, 1]
    json.dumps(config.to_dict())


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "im_theta": (-0.1, 1.1, float("nan"), "1", True, None),
        "im_layers": ("some", 3, [0.5], [True], None),
        "im_vector_field": ("euler", None, 1),
        "im_step_size": (0, -1.0, float("inf"), float("nan"), "1"),
        "im_solver": ("newton", "", None, ["anderson"]),
        "im_iterations": (-1, 1.5, None, True),
        "im_eval_iterations": (-1, 2.0),
        "im_tolerance": (-1e-3, float("inf"), float("nan")),
        "im_initial_guess": ("zero",),
        "im_learning_rate": (0, -0.1, float("nan"), float("inf")),
        "im_damping": (0, 1.5, float("nan")),
        "im_anderson_memory": (0, -1, 2.5),
        "im_gradient": ("exact",),
        "im_gradient_iterations": (-1, 0.5),
        "im_consistency": (-0.1, float("inf"), float("nan"), "1", True, None),
        "is_decoder": (True,),
        "add_cross_attention": (True,),
    }.items(),
)
def test_wrong_values_are_named(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must be ") as error:
            IMBertConfig(**{name: value})
        assert repr(value) in str(error.value)
        assert "\n" not in str(error.value)
        config = imbert_config()
        before = getattr(config, name)
        with pytest.raises(ValueError, match=rf"^{name} must be "):
            setattr(config, name, value)
        assert getattr(config, name) == before


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([3], "from -3 to 2 for 3 layers, got 3"),
        ([-4], "got -4"),
        ([1, 1], "each layer once"),
        ([-1, 2], "each layer once"),
    ],
)
def test_layer_indices(layers, message):
    with pytest.raises(ValueError, match=message):
        imbert_config(im_layers=layers)
    config = imbert_config()
    config.im_layers = layers
    with pytest.raises(ValueError, match=message):
        IMBertModel(config)


def test_implicit_layers():
    assert imbert_config().implicit_layers == {0, 1, 2}
    assert imbert_config(im_layers=[]).implicit_layers == frozenset()
    assert imbert_config(im_layers=[-1, 0]).implicit_layers == {0, 2}


def test_unknown_names_are_refused_everywhere(tmp_path):
    match = "'im_tetha' is no field of IMBertConfig: did you mean 'im_theta'"
    with pytest.raises(ValueError, match=match):
        IMBertConfig(im_tetha=0.5)
    config = imbert_config()
    with pytest.raises(ValueError, match=match):
        config.im_tetha = 0.5
    IMBertForSequenceClassification(config).save_pretrained(tmp_path)
    for load in (
        IMBertConfig.from_pretrained,
        AutoConfig.from_pretrained,
        IMBertForSequenceClassification.from_pretrained,
    ):
        with pytest.raises(ValueError, match=match):
            load(tmp_path, im_tetha=0.5)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"im_theta"', '"im_tetha"'))
    for load in (IMBertConfig.from_pretrained, AutoConfig.from_pretrained, IMBertModel.from_pretrained):
        with pytest.raises(ValueError, match=match):
            load(tmp_path)


def test_from_pretrained_overrides_are_checked(tmp_path):
    IMBertModel(imbert_config()).save_pretrained(tmp_path)
    assert IMBertModel.from_pretrained(tmp_path, im_theta=0.25, im_layers=[1]).config.im_theta == 0.25
    with pytest.raises(ValueError, match="im_theta must be"):
        IMBertModel.from_pretrained(tmp_path, im_theta=2)
    with pytest.raises(ValueError, match="im_layers must hold indices"):
        IMBertModel.from_pretrained(tmp_path, im_layers=[7])
    with pytest.raises(ValueError, match="is_decoder must be False"):
        IMBertModel.from_pretrained(tmp_path, is_decoder=True)


def test_other_model_types_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta", "hidden_size": 32}))
    for load in (IMBertConfig.from_pretrained, IMBertModel.from_pretrained):
        with pytest.raises(ValueError, match="holds a checkpoint of model_type 'roberta'; IMBertConfig loads 'bert'"):
            load(tmp_path)
    with pytest.raises(ValueError, match="IMBertModel needs an IMBertConfig, got BertConfig"):
        IMBertModel(BertConfig(**TINY))


def test_the_dictionary_of_a_bert_config_is_taken():
    config = IMBertConfig(**BertConfig(**TINY).to_dict())
    assert config.model_type == "imbert"
    assert IMBertModel(config).config is config
    with pytest.raises(ValueError, match="model_type must be 'bert' or 'imbert', got 'roberta'"):
        IMBertConfig(model_type="roberta")


def test_an_in_place_edit_is_not_saved(tmp_path):
    config = imbert_config(im_layers=[0])
    config.im_layers.append(7)
    with pytest.raises(ValueError, match="im_layers must hold indices"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bert_config_becomes_one_of_imbert(tmp_path, caplog):
    BertConfig(**TINY, num_labels=3).save_pretrained(tmp_path)
    config = IMBertConfig.from_pretrained(tmp_path, im_solver="anderson")
    assert (config.model_type, config.num_labels, config.im_solver) == ("imbert", 3, "anderson")
    assert "to instantiate a model of type" not in caplog.text


def test_a_subclass_keeps_every_check_and_may_add_fields():
    class Mine(IMBertConfig):
        mine: int = 3

    config = Mine(**TINY, im_layers=[0])
    assert (config.mine, config.im_layers, config.auto_map) == (3, [0], IMBertConfig().auto_map)
    assert Mine(mine=4).mine == 4
    assert Mine.paper().im_solver == "gradient_descent"
    with pytest.raises(ValueError, match="im_theta must be"):
        Mine(im_theta=2)
    with pytest.raises(ValueError, match="'im_thet' is no field of Mine"):
        Mine(im_thet=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_without_their_prefix_are_refused(family, tmp_path):
    config_class = getattr(imbert_hf, f"IM{family}Config")
    config_class().save_pretrained(tmp_path)
    for name in IM_FIELDS:
        bare = name.removeprefix("im_")
        for wrong in (bare, f"im{bare}", name.capitalize(), name.upper(), bare.replace("_", ""), f"im__{bare}"):
            if wrong == name:
                continue
            for make in (config_class, lambda **kw: config_class.from_pretrained(tmp_path, **kw), config_class.paper):
                with pytest.raises(ValueError, match=f"'{wrong}' is no field of .*did you mean '{name}'"):
                    make(**{wrong: 1})


def test_other_keywords_and_keys_of_a_file_go_where_berts_go(tmp_path):
    config = IMBertConfig(my_note="a", tied=3)
    assert (config.my_note, config.tied) == ("a", 3)
    BertConfig(solver="lbfgs", layers=12, Theta=1, **TINY).save_pretrained(tmp_path)
    config = IMBertConfig.from_pretrained(tmp_path, im_theta=0.5)
    assert (config.solver, config.layers, config.Theta, config.im_theta) == ("lbfgs", 12, 1, 0.5)
    config.save_pretrained(tmp_path / "again")
    assert IMBertConfig.from_pretrained(tmp_path / "again").solver == "lbfgs"
