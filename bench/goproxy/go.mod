module drover.bench/goproxy

go 1.21
