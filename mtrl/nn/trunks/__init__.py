"""Trunks: one method per file, `forward(features, context) -> (*batch, H)` with `out_features` = H."""
