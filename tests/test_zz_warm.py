def test_warm(tiny_graph, tiny_native, tiny_fixed):
    import onnx
    from videomar.graphs import GRAPHS
    for prec in ("fp32","fp16"):
        for g in GRAPHS: tiny_graph(g,prec,"portable",None)
        tiny_graph("transformer_step",prec,"native",None)
        tiny_graph("transformer_step",prec,"native",64)
