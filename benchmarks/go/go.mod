module mapbridge/benchmarks

go 1.19
