"""The paper's held-out benchmarks, one file each, in its generative form: a prompt, a reply, an answer taken from it, a judge."""
