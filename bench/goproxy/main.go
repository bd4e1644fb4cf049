// The reverse proxy of Go's standard library, reading each body for its model as drover does.
//
//	goproxy LISTEN UPSTREAM [pooled]
//
// As it comes, ReverseProxy makes a new buffer of 32 KiB for each answer. "pooled" lends it used ones.
package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"
	"time"
)

const (
	bodyBytes   = 64 << 20
	bufferBytes = 32 << 10 // what ReverseProxy makes by itself
)

type buffers struct{ sync.Pool }

func (b *buffers) Get() []byte       { return b.Pool.Get().([]byte) }
func (b *buffers) Put(buffer []byte) { b.Pool.Put(buffer) }

type asked struct {
	Model  string `json:"model"`
	Stream bool   `json:"stream"`
}

func main() {
	target, err := url.Parse("http://" + os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		// Streams of unknown length are flushed at once by ReverseProxy itself.
		Transport: &http.Transport{
			MaxIdleConns:        4096,
			MaxIdleConnsPerHost: 4096,
			IdleConnTimeout:     60 * time.Second,
			DisableCompression:  true,
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	if len(os.Args) > 3 && os.Args[3] == "pooled" {
		proxy.BufferPool = &buffers{sync.Pool{New: func() any { return make([]byte, bufferBytes) }}}
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytes))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		var what asked
		if len(body) > 0 {
			if err := json.Unmarshal(body, &what); err != nil || what.Model == "" {
				http.Error(w, "the body names no model", http.StatusBadRequest)
				return
			}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		proxy.ServeHTTP(w, r)
	})
	log.Fatal(http.ListenAndServe(os.Args[1], handler))
}
