"""How a model is made ready for training: its losses set, and what no loss reaches frozen."""

from seeklet.finetune.recipe import MoeSettings
from seeklet.finetune.training_model import freeze_unreached, set_losses
from tests.modeling.nano import build_ours


def test_settings_of_the_recipe_take_the_place_of_the_checkpoints() -> None:
    model = build_ours(num_nextn_predict_layers=1)
    set_losses(model, MoeSettings(mtp_loss_weight=0.7, balance_loss_weight=0.0, bias_update_speed=0.5))
    config = model.config
    assert (config.mtp_loss_weight, config.balance_loss_weight, config.bias_update_speed) == (0.7, 0.0, 0.5)
    freeze_unreached(model, MoeSettings(mtp_loss="off"))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("model.layers.3.")}
