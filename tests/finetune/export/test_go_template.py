"""Go's text/template as far as chat templates go, by its documentation's own rules."""

import pytest

from seeklet.finetune.export.go_template import GoTemplateError, render

DATA = {"Name": "Ada", "Empty": "", "Items": [{"N": 1}, {"N": 2}, {"N": 3}], "Yes": True, "No": False}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {{ .Name }} b", "a Ada b"),
        # The example of the documentation: white space is trimmed on the side of the hyphen, over line ends.
        ("x \n {{- .Name -}} \n y", "xAday"),
        ("x \n {{ .Name -}} \n y", "x \n Aday"),
        ("{{ if .Empty }}1{{ else if .Yes }}2{{ else }}3{{ end }}", "2"),
        ("{{ if .Empty }}1{{ else if .No }}2{{ else }}3{{ end }}", "3"),
        ("{{ range $i, $v := .Items }}{{ $i }}{{ .N }}{{ $v.N }},{{ end }}", "011,122,233,"),
        ("{{ range .Items }}{{ .N }}{{ $.Name }}{{ end }}", "1Ada2Ada3Ada"),
        ("{{ range $i, $_ := .Items }}{{ if eq (len (slice $.Items $i)) 1 }}last{{ .N }}{{ end }}{{ end }}", "last3"),
        ('{{ $x := eq .Name "Ada" }}{{ if and $x (not .No) }}{{ .Name }}{{ end }}', "Ada"),
        # and, or give back a value, the first that decides.
        ('{{ or .Empty .Name }}{{ and .Name "b\\n" }}', "Adab\n"),
        ('{{ if ne .Name "Bob" }}n{{ end }}{{ if eq .Name "Bob" "Ada" }}e{{ end }}', "ne"),
        # What is not reached is not looked at.
        ("{{ if and .No .Missing }}1{{ end }}{{ if or .Yes .Missing }}2{{ end }}", "2"),
    ],
)
def test_renders_as_go_does(template: str, expected: str) -> None:
    assert render(template, DATA) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ .Missing }}",
        "{{ if .Yes }}",
        "{{ end }}",
        "{{ json .Items }}",
        "{{ .Name | printf }}",
        "{{ range .Items }}{{ else }}{{ end }}",
        "{{ eq (len .Items 1 }}",
        '{{ template "x" }}',
        "{{ }}",
    ],
)
def test_what_is_not_understood_is_never_guessed(template: str) -> None:
    with pytest.raises(GoTemplateError):
        render(template, DATA)
