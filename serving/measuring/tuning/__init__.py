"""`ferry bench --tune`: the candidates, their screening, and the choice among the best."""
