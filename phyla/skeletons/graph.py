"""The call of models of graphs."""

from typing import Any

from torch import Tensor

from phyla.errors import ArgumentError
from phyla.heads.base import Call
from phyla.model import PreTrainedModel
from phyla.skeletons.base import conclude, context_for


class GraphModel(PreTrainedModel):
    """Nodes and edges to states of the nodes, behind one of the whole graph."""

    main_input_name = "input_nodes"

    def forward(
        self,
        input_nodes: Tensor | None = None,
        input_edges: Tensor | None = None,
        attn_bias: Tensor | None = None,
        in_degree: Tensor | None = None,
        out_degree: Tensor | None = None,
        spatial_pos: Tensor | None = None,
        attn_edge_type: Tensor | None = None,
        perturb: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model on graphs of N nodes, as the public collator makes them.

        input_nodes (B, N, features), 0 for padding; in_degree, out_degree (B, N); spatial_pos (B, N, N):
        lengths of shortest paths; input_edges (B, N, N, hops, features): edges on them; attn_edge_type (B, N,
        N, features); attn_bias (B, N + 1, N + 1); perturb (B, N, D): noise on the embedded nodes.
        """
        given = (input_nodes, input_edges, attn_bias, in_degree, out_degree, spatial_pos, attn_edge_type)
        if input_nodes is None or any(t is None for t in given):
            raise ArgumentError(
                "pass input_nodes, input_edges, attn_bias, in_degree, out_degree, spatial_pos, attn_edge_type"
            )
        batch, nodes = input_nodes.shape[:2]
        ctx = context_for(self, (batch, nodes + 1), input_nodes.device, None, None, None, False, False)
        out = self.backbone(ctx, *given, perturb)
        return conclude(self, out, Call(self.config, labels=labels), return_dict)
