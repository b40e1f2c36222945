package listeners

import (
	"fmt"
	"strings"

	"github.com/usherproxy/usher/internal/settings"
)

// The TLV of settings.SSLType describes the client's TLS connection to the load balancer: a byte of flags, four bytes
// that are zero if the client's certificate is verified, and parts with a type (one byte), a length (two bytes) and a
// value (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt, 2.2.6).
//
// Envoy stores the TLV as text. Bytes of ASCII stay as they are, also 0. Each byte that is no UTF-8 becomes "!", and the
// text keeps its length. So "!" (0x21) may be any byte from 0x80, and nothing is concluded from it alone. In a pattern, \C
// is a byte.

// The beginnings of the TLV.
const (
	sslUsed        = `^[\x01\x03\x05\x07]\C{4}` // the client uses TLS
	sslCertificate = `^[\x02-\x07]\C{4}`        // the client presented a certificate
	sslVerified    = `^[\x02-\x07]\x00{4}`      // the certificate is verified
)

// protoExpression is what X-Forwarded-Proto says of the client's connection to the load balancer.
var protoExpression = func() string {
	value, present := storedTLV(settings.TLV{Type: settings.SSLType})
	return fmt.Sprintf(`%s && %s.matches(r'%s') ? 'https' : 'http'`, present, value, sslUsed)
}()

func sslClientVerified(value string) string {
	return fmt.Sprintf(` && %s.matches(r'%s') ? (%s.matches(r'%s') ? 'yes' : 'no') : ''`, value, sslCertificate, value, sslVerified)
}

// cnPattern extracts the last byte of the CN's length and the CN. All parts in front of the CN are printable, so a 0 is
// always the first byte of a length, and the byte before it is a type: what a client writes into its CN cannot be taken
// for an earlier part. Behind the CN is the end, or a type and the first byte of a length. A CN without this form, with a
// 0 for example, has another length than the extracted one.
const cnPattern = sslCertificate +
	`(?:[\x21\x23-\x28]\x00[\x01-\x7f][\x21-\x7e]+)*` +
	`\x22\x00([\x01-\x40])([\x22-\x7e](?:[\x20\x22-\x7e]*[\x22-\x7e])?)(?:[\x21\x23-\x28][\x00-\x1f]|$)`

// sslClientCN extracts a CN whose length is right. The length "!" is 33, or 128 and more. Only if there are too few
// bytes for 128 is it 33: a TLV that is shorter than its eight other bytes and a CN of 128.
func sslClientCN(value string) string {
	part := func(i int) string { return fmt.Sprintf(`re.extract(%s, r'%s', r'\%d')`, value, cnPattern, i) }
	length, cn := part(1), part(2)
	return fmt.Sprintf(` && %s.matches(r'%s') && size(%s) == %s[%s]`, value, cnPattern, cn, lengths, length) +
		fmt.Sprintf(` && (%s != '!' || size(%s) < 136 && %s.matches(r'^[\x00-\x7f]*$')) ? %s : ''`, length, value, value, cn)
}

// lengths are the numbers that bytes stand for, up to the longest CN (64, by X.520). The language has no function for it.
var lengths = func() string {
	var items []string
	for i := 1; i <= 64; i++ {
		items = append(items, fmt.Sprintf(`'\x%02x':%d`, i, i))
	}
	return "{" + strings.Join(items, ",") + "}"
}()
