"""Solution of lesson 16."""

import torch


def mixed_loss(task, windows):
    """Sums over the tokens of all rows, divided by all tokens; then weighted by rows."""
    n, k = len(task), len(windows)
    task_sum = sum(-log_q[torch.arange(len(labels)), labels].sum() for log_q, labels in task)
    window_sum = sum((log_p.exp() * (log_p - log_q)).sum() for log_q, log_p in windows)
    task_tokens = sum(len(labels) for _, labels in task)
    window_tokens = sum(len(log_q) for log_q, _ in windows)
    loss = (n * task_sum / task_tokens + k * window_sum / window_tokens) / (n + k)
    return loss, window_tokens / (task_tokens + window_tokens)
