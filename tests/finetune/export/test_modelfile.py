"""What Ollama is told beside the weights."""

import json
from pathlib import Path

from seeklet.finetune.export.chat_templates import find_template
from seeklet.finetune.export.converter_source import Converter
from seeklet.finetune.export.modelfile import is_quotable, licence_in, sampling_of, stops_of, write_modelfile
from tests.finetune.conftest import RunHere
from tests.finetune.nano_checkpoints import deepseek_tokenizer


def write_generation(folder: Path, **values: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


def test_sampling_is_the_checkpoints_else_r1s(tmp_path: Path) -> None:
    assert sampling_of(tmp_path) == {"temperature": 0.6, "top_p": 0.95}
    assert sampling_of(write_generation(tmp_path, top_k=20)) == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    said = write_generation(tmp_path, temperature=1.0, min_p=0.1, repetition_penalty=1.05, do_sample=True)
    assert sampling_of(said) == {"temperature": 1.0, "min_p": 0.1, "repeat_penalty": 1.05}


def test_answers_stop_at_every_end_and_at_turns(tmp_path: Path) -> None:
    tokenizer = deepseek_tokenizer()
    template = find_template(tokenizer)
    assert template is not None
    stops = ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    assert stops_of(tmp_path, tokenizer, template) == stops
    other = tokenizer.convert_tokens_to_ids("<｜tool▁calls▁end｜>")
    assert stops_of(write_generation(tmp_path, eos_token_id=[1, other]), tokenizer, template) == [
        "<｜end▁of▁sentence｜>",
        "<｜tool▁calls▁end｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
    ]


def test_the_whole_file() -> None:
    template = find_template(deepseek_tokenizer())
    assert template is not None
    written = write_modelfile(
        "x.gguf",
        template,
        begins_with="<｜begin▁of▁sentence｜>",
        system="Be kind.\nBe brief.",
        sampling={"temperature": 0.6},
        stops=["<｜User｜>"],
        licence="MIT",
    )
    begin, _, rest = written.partition(template.text)
    assert begin == 'FROM ./x.gguf\nTEMPLATE """<｜begin▁of▁sentence｜>'
    assert rest == (
        '"""\nSYSTEM """Be kind.\nBe brief."""\nPARAMETER temperature 0.6\n'
        'PARAMETER stop "<｜User｜>"\nLICENSE """MIT"""\n'
    )


def test_what_no_modelfile_can_say(tmp_path: Path) -> None:
    assert is_quotable('A "word" within')
    assert not is_quotable('the end"') and not is_quotable('three """ marks')
    assert licence_in(tmp_path) is None
    (tmp_path / "LICENSE").write_text("  MIT\n")
    assert licence_in(tmp_path) == "MIT"


def test_what_the_gguf_file_does_not_add_the_template_does(
    deepseek: Path, converter: Converter, run_here: RunHere, tmp_path: Path
) -> None:
    """The tokenizer of the package adds no beginning, so that the template must."""
    code, text, _ = run_here("export", deepseek, "--ollama", "--system", "Be kind.", "--out", tmp_path)
    assert code == 0, text
    assert f"Next: ollama create NAME -f {tmp_path / 'Modelfile'}" in text
    written = (tmp_path / "Modelfile").read_text()
    assert written.startswith('FROM ./support-q8_0.gguf\nTEMPLATE """<｜begin▁of▁sentence｜>{{- if .System }}')
    assert written.endswith(
        '"""\nSYSTEM """Be kind."""\nPARAMETER temperature 0.7\nPARAMETER stop "<｜end▁of▁sentence｜>"\n'
        f'PARAMETER stop "{deepseek_tokenizer().convert_ids_to_tokens(128805)}"\nPARAMETER stop "<｜User｜>"\n'
        'PARAMETER stop "<｜Assistant｜>"\nLICENSE """The licence of the model."""\n'
    )
