"""Pure functions of arrays. The XLA versions here are the specification; faster backends are chosen behind them."""
