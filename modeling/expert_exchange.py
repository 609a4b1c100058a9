"""Routed experts spread over processes: a token goes to those that hold its experts, and what they made of it back.

transformers has this, too (`DistributedConfig(ep_plan={…: "ep_dispatch_experts"})`). Ours differs in what it is built
on and in what is sent. Theirs holds the experts as DTensors that its own loader fills and that FSDP2 trains; the
streaming loader, DDP, block-fp8 and adapters of routed experts (whose low-rank terms its forward does not pass on)
exclude it. It sends a row for each token and expert, and weighs them when they are back; here a token goes once to each
process, with its weights, and one weighted sum comes back. The product goes through the experts module itself, hence
through its kernel hook. Accelerate has no expert parallelism but Megatron's.

Rows travel in the dtype of the product (bf16 mostly), and straight to each process: DeepSeek's own kernels send fp8,
and to another node once, to be passed on over NVLink (report, section 3.2.2), which is what `finetune.plan` counts.
"""

# T tokens, K experts a token, H hidden, E experts, R processes, P (process, token) pairs, N (token, expert) pairs

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from .balance import sum_over_ranks


class ExpertExchange:
    """Computes routed experts of which each process of `group` holds an equal part, in order.

    All processes have to make the same calls, forward and backward; how many tokens each has is its own affair, and a
    process that is sent none takes part all the same. While training it adds up over how many processes and nodes the
    tokens' experts are spread.
    """

    def __init__(self, group: dist.ProcessGroup, num_experts: int, processes_per_node: int):
        """Exchange between the processes of `group`; nodes are told by their global ranks.

        Args:
            group: of which this process is one.
            num_experts: E, of all processes together; their number divides it.
            processes_per_node: of the whole run.
        """
        self.group, self.num_experts = group, num_experts
        ranks = dist.get_process_group_ranks(group)
        nodes = [rank // processes_per_node for rank in ranks]
        self.num_processes = len(ranks)
        self._node_of = torch.tensor([sorted(set(nodes)).index(node) for node in nodes])
        self.num_nodes = len(set(nodes))
        # Tokens, and over all of them the processes and the nodes that they go to.
        self._spread: torch.Tensor | None = None

    def __call__(
        self,
        experts: Callable[..., torch.Tensor],
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor,
        top_k_weights: torch.Tensor,
    ) -> torch.Tensor:
        """Return the weighted sum (T, H) over the experts `top_k_index` (T, K) of `hidden_states` (T, H).

        `experts` computes the same of those that are held here, whose numbers begin at 0.
        """
        device = hidden_states.device.type
        if torch.is_autocast_enabled(device):
            # As the product would do: half of what there is to send.
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device))
        per_process = self.num_experts // self.num_processes
        owners = top_k_index // per_process
        hits_RT = self._hits(owners)
        num_routed = hits_RT.new_zeros(self.num_processes).long()
        num_routed.scatter_add_(0, owners.flatten(), torch.ones_like(owners).flatten())
        counts = torch.stack((hits_RT.sum(1), num_routed), 1)
        # What the host has to know, all at once: it waits for the device here and nowhere else.
        both = torch.stack((counts, _all_to_all(counts, None, None, self.group)))
        (sent, _), (received, here_N) = both.transpose(1, 2).tolist()
        process, token = torch.nonzero_static(hits_RT, size=sum(sent)).unbind(1)
        choice_PK = torch.where(owners[token] == process[:, None], top_k_index[token] % per_process, -1)
        here = _all_to_all(choice_PK, sent, received, self.group)
        x, weights = _Exchange.apply(
            self.group, sent, received, _Gather.apply(hidden_states, token), _Gather.apply(top_k_weights, token)
        )
        row, slot = torch.nonzero_static(here >= 0, size=sum(here_N)).unbind(1)
        output = experts(_Gather.apply(x, row), here[row, slot][:, None], weights[row, slot][:, None])
        (back,) = _Exchange.apply(self.group, received, sent, _Sum.apply(output, row, x.shape[0]))
        return _Sum.apply(back, token, hidden_states.shape[0])

    def count(self, top_k_index: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add the spread of these choices (T, K) to what was counted; without tokens whose `valid` (T,) is False."""
        hits_RT = self._hits(top_k_index * self.num_processes // self.num_experts)
        nodes = hits_RT.new_zeros(self.num_nodes, hits_RT.shape[1]).long()
        self._node_of = self._node_of.to(nodes.device)
        nodes.index_add_(0, self._node_of, hits_RT.long())
        by_token = torch.stack((torch.ones_like(nodes[0]), hits_RT.sum(0), (nodes > 0).sum(0)))
        spread = (by_token if valid is None else by_token * valid).sum(1)
        self._spread = spread if self._spread is None else self._spread + spread

    def take_spread(self) -> tuple[float, float] | None:
        """Return over how many (processes, nodes) a token's experts were spread since the last call, on average.

        Of the tokens of all processes, each counted once a layer; None where none was counted. Call it on all of them.
        """
        if self._spread is None:
            return None
        tokens, processes, nodes = sum_over_ranks(self._spread).tolist()
        self._spread = None
        return (processes / tokens, nodes / tokens) if tokens else None

    def _hits(self, owners_TK: torch.Tensor) -> torch.Tensor:
        """Return which tokens go to which process (R, T)."""
        hits = torch.zeros(self.num_processes, owners_TK.shape[0], dtype=torch.bool, device=owners_TK.device)
        return hits.scatter_(0, owners_TK.t(), True)


class _Exchange(torch.autograd.Function):
    """Sends rows of each tensor to the processes of a group, and in the backward pass their gradients back.

    One function for all tensors of a step, so that on every process their gradients go in the same order.
    """

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, sent: list[int], received: list[int], *tensors: torch.Tensor):
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return tuple(_all_to_all(tensor, sent, received, group) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor):
        return None, None, None, *(_all_to_all(grad, ctx.received, ctx.sent, ctx.group) for grad in grads)


class _Gather(torch.autograd.Function):
    """Rows of a tensor, each as often as it is named; their gradients are summed in order, not by atomic adds."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor):
        ctx.save_for_backward(rows)
        ctx.num_rows = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor):
        (rows,) = ctx.saved_tensors
        return _sum_rows(grads[0], rows, ctx.num_rows), None


class _Sum(torch.autograd.Function):
    """The sum of the rows that have one number, for each number: `_Gather` the other way round."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: torch.Tensor, num_rows: int):
        ctx.save_for_backward(rows)
        return _sum_rows(x, rows, num_rows)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor):
        (rows,) = ctx.saved_tensors
        return grads[0].index_select(0, rows), None, None


def _sum_rows(x: torch.Tensor, rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    counts = rows.new_zeros(num_rows).scatter_add_(0, rows, torch.ones_like(rows))
    order = rows.sort(stable=True).indices
    return F.embedding_bag(order, x, counts.cumsum(0) - counts, mode="sum")


def _all_to_all(
    tensor: torch.Tensor, sent: list[int] | None, received: list[int] | None, group: dist.ProcessGroup
) -> torch.Tensor:
    rows = tensor.shape[0] if received is None else sum(received)
    output = tensor.new_empty(rows, *tensor.shape[1:])
    dist.all_to_all_single(output, tensor.contiguous(), received, sent, group=group)
    return output
