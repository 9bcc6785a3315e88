"""Examples of FlowStone."""
