"""The ledger: the only SQL of FlowStone. Functions take a Connection and never commit."""
