package requestbytes_test

import (
	"bytes"
	"io"
	"testing"

	"golang.org/x/net/http2"

	"github.com/usherproxy/usher/internal/requestbytes"
)

// TestOnlyDataCounts reads a client's bytes in pieces of each size.
func TestOnlyDataCounts(t *testing.T) {
	var client bytes.Buffer
	_, _ = io.WriteString(&client, http2.ClientPreface)
	framer := http2.NewFramer(&client, nil)
	for _, err := range []error{
		framer.WriteSettings(),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("headers"), EndHeaders: true}),
		framer.WriteData(1, false, make([]byte, 300)),
		framer.WritePing(false, [8]byte{}),
		framer.WriteData(1, true, nil),
		framer.WriteData(3, true, make([]byte, 7)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for size := 1; size <= client.Len(); size++ {
		counter := requestbytes.NewCounter()
		var data, frames int
		for rest := client.Bytes(); len(rest) > 0; {
			n := min(size, len(rest))
			moreData, moreFrames := counter.Count(rest[:n])
			data, frames, rest = data+moreData, frames+moreFrames, rest[n:]
		}
		if data != 307 || frames != 3 {
			t.Errorf("in pieces of %d bytes: %d bytes in %d frames, want 307 in 3", size, data, frames)
		}
	}
}
