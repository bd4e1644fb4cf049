"""Prompt templates of the catalogue's models, in short: what they mention decides what a model can do."""

from __future__ import annotations

_TURNS = "{{- range .Messages }}%s{{ .Role }}%s{{ .Content }}%s\n{{- end }}"

LLAMA3 = (
    "{{- if .System }}<|start_header_id|>system<|end_header_id|>{{ .System }}<|eot_id|>{{- end }}"
    "{{- if .Tools }}You may call these functions: {{ .Tools }}{{- end }}"
    + _TURNS % ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
    + "<|start_header_id|>assistant<|end_header_id|>\n\n{{ .Response }}"
)
CHATML = (
    "{{- if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{- end }}"
    "{{- if .Tools }}# Tools\n{{ .Tools }}{{- end }}"
    "{{- if .Suffix }}<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>{{- end }}"
    + _TURNS % ("<|im_start|>", "\n", "<|im_end|>")
    + "<|im_start|>assistant\n{{ .Response }}"
)
MISTRAL = (
    "{{- if .Tools }}[AVAILABLE_TOOLS] {{ .Tools }}[/AVAILABLE_TOOLS]{{- end }}"
    + _TURNS % ("[INST] ", " ", "[/INST]")
    + "{{ .Response }}"
)
GEMMA = _TURNS % ("<start_of_turn>", "\n", "<end_of_turn>") + "<start_of_turn>model\n{{ .Response }}"
HARMONY = (
    "<|start|>system<|message|>{{ if .Think }}Reasoning: {{ .ThinkLevel }}{{ end }}<|end|>"
    "{{- if .Tools }}<|start|>developer<|message|># Tools\n{{ .Tools }}<|end|>{{- end }}"
    + _TURNS % ("<|start|>", "<|message|>", "<|end|>")
    + "<|start|>assistant{{ .Response }}"
)
PHI = _TURNS % ("<|im_start|>", "<|im_sep|>", "<|im_end|>") + "<|im_start|>assistant<|im_sep|>{{ .Response }}"
R1 = (
    "{{- if .System }}{{ .System }}{{ end }}{{- if .Tools }}# Tools\n{{ .Tools }}{{- end }}"
    + _TURNS % ("<|", "|>", "")
    + "<|Assistant|>{{ if .Think }}<think>\n{{ end }}{{ .Response }}"
)
PLAIN = "{{ .Prompt }}"
