"""DeepSeek-V3 in float64, written from the report's equations, one token, head and expert at a time.

It shares no code with seeklet and takes one sequence at a time, so padding and packing cannot go wrong in it. Only
the rotary table is fp32, as published code computes it. Equations are those of the DeepSeek-V3 technical report.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

IGNORE = -100


@dataclass
class Losses:
    """Each a mean, without its coefficient: next token, MTP over its depths (eq. 25), balance (eq. 17)."""

    lm: torch.Tensor
    mtp: torch.Tensor
    balance: torch.Tensor


class ReferenceModel:
    """The model of a config and of published-layout weights (experts fused); gradients gather in `weights`."""

    def __init__(self, config: Any, weights: dict[str, torch.Tensor]):
        self.config = config
        self.weights = {
            name: tensor.detach().double().requires_grad_(not name.endswith("e_score_correction_bias"))
            for name, tensor in weights.items()
        }
        if config.tie_word_embeddings:
            self.weights["lm_head.weight"] = self.weights["model.embed_tokens.weight"]
        self.router_scores: list[list[torch.Tensor]] = []

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Return (S, V)."""
        return torch.stack([self.weights["lm_head.weight"] @ h for h in self.main_states(tokens)])

    def losses(self, sequences: list[tuple[list[int], list[int]]]) -> Losses:
        """Return the losses over sequences of (tokens, labels); IGNORE in labels where nothing is predicted."""
        lm, balance = [], []
        mtp = [[] for _ in range(self.config.num_nextn_predict_layers)]
        for tokens, labels in sequences:
            self.router_scores = []
            states = self.main_states(tokens)
            balance.append(sum(self.balance_of_layer(scores) for scores in self.router_scores))
            lm += self.cross_entropies(states, labels[1:])
            for k in range(1, self.config.num_nextn_predict_layers + 1):
                # Module k knows tokens up to i + k and predicts i + k + 1 (eq. 21 to 24).
                states = self.mtp_states(states, tokens, k)
                mtp[k - 1] += self.cross_entropies(states, labels[k + 1 :])
        zero = torch.zeros((), dtype=torch.float64)
        per_depth = [torch.stack(one).mean() if one else zero for one in mtp]
        return Losses(
            lm=torch.stack(lm).mean(),
            mtp=torch.stack(per_depth).mean() if per_depth else zero,
            balance=torch.stack([zero + one for one in balance]).mean(),
        )

    def cross_entropies(self, states: list[torch.Tensor], targets: list[int]) -> list[torch.Tensor]:
        """Return -log p(target) of every state that has one; states and targets start at the same position."""
        found = []
        for state, target in zip(states, targets, strict=False):
            if target != IGNORE:
                logits = self.weights["lm_head.weight"] @ state
                found.append(torch.log(torch.exp(logits).sum()) - logits[target])
        return found

    def main_states(self, tokens: list[int]) -> list[torch.Tensor]:
        """Return the hidden state of every token after the last norm."""
        states = [self.weights["model.embed_tokens.weight"][token] for token in tokens]
        for index in range(self.config.num_hidden_layers):
            states = self.layer(states, index)
        return [self.norm(state, "model.norm", self.config.rms_norm_eps) for state in states]

    def mtp_states(self, states: list[torch.Tensor], tokens: list[int], k: int) -> list[torch.Tensor]:
        """Return h^k of positions 1 to S-k from h^(k-1) and the tokens k further (eq. 21 and 22)."""
        index = self.config.num_hidden_layers + k - 1
        prefix, eps = f"model.layers.{index}", self.config.rms_norm_eps
        merged = []
        for position in range(len(tokens) - k):
            embedding = self.weights["model.embed_tokens.weight"][tokens[position + k]]
            pair = (
                self.norm(embedding, f"{prefix}.enorm", eps),
                self.norm(states[position], f"{prefix}.hnorm", eps),
            )
            merged.append(self.weights[f"{prefix}.eh_proj.weight"] @ torch.cat(pair))
        return [self.norm(state, f"{prefix}.shared_head.norm", eps) for state in self.layer(merged, index)]

    def layer(self, states: list[torch.Tensor], index: int) -> list[torch.Tensor]:
        """Return the states after attention and feed-forward, each on its norm and added to the residual."""
        prefix, eps = f"model.layers.{index}", self.config.rms_norm_eps
        normed = [self.norm(state, f"{prefix}.input_layernorm", eps) for state in states]
        attended = self.attention(normed, f"{prefix}.self_attn")
        states = [state + more for state, more in zip(states, attended, strict=True)]
        normed = [self.norm(state, f"{prefix}.post_attention_layernorm", eps) for state in states]
        if index < self.config.first_k_dense_replace:
            fed = [self.feed_forward(state, f"{prefix}.mlp") for state in normed]
        else:
            fed = self.mixture(normed, f"{prefix}.mlp")
        return [state + more for state, more in zip(states, fed, strict=True)]

    def attention(self, states: list[torch.Tensor], prefix: str) -> list[torch.Tensor]:
        """Return the output of multi-head latent attention, eq. 1 to 11, of every token."""
        c, W = self.config, self.weights
        nope, rope, value = c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim
        up = W[f"{prefix}.kv_b_proj.weight"].reshape(c.num_attention_heads, nope + value, c.kv_lora_rank)
        queries, contents, rope_keys, values = [], [], [], []
        for position, h in enumerate(states):
            down = self.linear(h, f"{prefix}.kv_a_proj_with_mqa")
            # The latent layers' norm has its own epsilon in the published code.
            latent = self.norm(down[: c.kv_lora_rank], f"{prefix}.kv_a_layernorm", 1e-6)
            rope_keys.append(self.rotate(down[c.kv_lora_rank :], position))
            contents.append([up[head, :nope] @ latent for head in range(c.num_attention_heads)])
            values.append([up[head, nope:] @ latent for head in range(c.num_attention_heads)])
            if c.q_lora_rank is None:
                flat = W[f"{prefix}.q_proj.weight"] @ h
            else:
                query_latent = self.norm(self.linear(h, f"{prefix}.q_a_proj"), f"{prefix}.q_a_layernorm", 1e-6)
                flat = W[f"{prefix}.q_b_proj.weight"] @ query_latent
            heads = flat.reshape(c.num_attention_heads, nope + rope)
            queries.append([(q[:nope], self.rotate(q[nope:], position)) for q in heads])
        outputs = []
        for t in range(len(states)):
            per_head = []
            for head in range(c.num_attention_heads):
                q_content, q_rope = queries[t][head]
                scores = [
                    (q_content @ contents[j][head] + q_rope @ rope_keys[j]) / math.sqrt(nope + rope)
                    for j in range(t + 1)
                ]
                weights = torch.exp(torch.stack(scores))
                weights = weights / weights.sum()
                per_head.append(sum(weights[j] * values[j][head] for j in range(t + 1)))
            outputs.append(self.linear(torch.cat(per_head), f"{prefix}.o_proj"))
        return outputs

    def rotate(self, x: torch.Tensor, position: int) -> torch.Tensor:
        """Return `x` with every pair of dimensions turned by position * theta^(-2i/R)."""
        size = len(x)
        theta = self.config.rope_parameters["rope_theta"]
        steps = torch.arange(0, size, 2, dtype=torch.float32) / size
        angles = position * (1.0 / theta**steps)
        turned = torch.empty_like(x)
        for i in range(size // 2):
            a, b = (2 * i, 2 * i + 1) if self.config.rope_interleave else (i, i + size // 2)
            cos, sin = angles[i].cos().double(), angles[i].sin().double()
            turned[a] = x[a] * cos - x[b] * sin
            turned[b] = x[b] * cos + x[a] * sin
        return turned

    def mixture(self, states: list[torch.Tensor], prefix: str) -> list[torch.Tensor]:
        """Return eq. 12 without its residual: shared experts plus the weighted routed experts of every token."""
        all_scores, outputs = [], []
        for state in states:
            logits = self.weights[f"{prefix}.gate.weight"] @ state
            scores = torch.sigmoid(logits) if self.config.scoring_func == "sigmoid" else torch.softmax(logits, 0)
            all_scores.append(scores)
            chosen = self.choose(scores, self.weights[f"{prefix}.gate.e_score_correction_bias"])
            total = sum(scores[i] for i in chosen) if self.config.norm_topk_prob else 1.0
            output = torch.zeros_like(state)
            for i in chosen:
                gate_up = self.weights[f"{prefix}.experts.gate_up_proj"][i]
                gate, up = (gate_up @ state).chunk(2)
                expert = self.weights[f"{prefix}.experts.down_proj"][i] @ (gate / (1 + torch.exp(-gate)) * up)
                output = output + self.config.routed_scaling_factor * scores[i] / total * expert
            if self.config.n_shared_experts:
                output = output + self.feed_forward(state, f"{prefix}.shared_experts")
            outputs.append(output)
        self.router_scores.append(all_scores)
        return outputs

    def choose(self, scores: torch.Tensor, bias: torch.Tensor) -> list[int]:
        """Return the experts with the best biased scores (eq. 16) within the best groups (section 2.1.2)."""
        biased = (scores.detach() + bias).tolist()
        size = len(biased) // self.config.n_group
        groups = [range(start, start + size) for start in range(0, len(biased), size)]
        by_group = sorted(groups, key=lambda group: -sum(sorted((biased[i] for i in group), reverse=True)[:2]))
        allowed = [i for group in by_group[: self.config.topk_group] for i in group]
        return sorted(allowed, key=lambda i: -biased[i])[: self.config.num_experts_per_tok]

    def balance_of_layer(self, scores: list[torch.Tensor]) -> torch.Tensor:
        """Return sum over experts of f_i P_i for the tokens of one sequence (eq. 17 to 20)."""
        experts, top_k, length = self.config.n_routed_experts, self.config.num_experts_per_tok, len(scores)
        total = torch.zeros((), dtype=torch.float64)
        for i in range(experts):
            hits = sum(i in torch.topk(s, top_k).indices.tolist() for s in scores)
            f = experts / (top_k * length) * hits
            p = sum(s[i] / s.sum() for s in scores) / length
            total = total + f * p
        return total

    def feed_forward(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        """Return down(silu(gate x) * up x)."""
        gate = self.weights[f"{prefix}.gate_proj.weight"] @ x
        up = self.weights[f"{prefix}.up_proj.weight"] @ x
        return self.weights[f"{prefix}.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Return W x, plus the bias where there is one."""
        bias = self.weights.get(f"{name}.bias")
        output = self.weights[f"{name}.weight"] @ x
        return output if bias is None else output + bias

    def norm(self, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        """Return x over its root mean square, times the weight."""
        return self.weights[f"{name}.weight"] * x / torch.sqrt((x * x).mean() + eps)
