"""One distillation trial: config, data, networks, loss, loop. Knows nothing of studies."""
