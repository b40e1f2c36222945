// Package wire reads single fields of an encoded protobuf message without
// decoding the whole: what nobody asks for costs no memory.
package wire

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrDamaged says that bytes are not an encoded message.
var ErrDamaged = errors.New("the encoding is damaged")

// Fields calls visit with each field of a message that has bytes as its value:
// strings, bytes, messages and entries of maps, in the order of the message. Other
// fields are passed over. value is a part of data. Fields returns the first
// error of visit, or ErrDamaged.
func Fields(data []byte, visit func(number protowire.Number, value []byte) error) error {
	for len(data) > 0 {
		number, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return ErrDamaged
		}
		data = data[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, typ, data); n < 0 {
				return ErrDamaged
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return ErrDamaged
		}
		data = data[n:]
		if err := visit(number, value); err != nil {
			return err
		}
	}
	return nil
}
