"""What the benchmark scripts share: cases, competitors, timing, summaries, tables and figures."""
