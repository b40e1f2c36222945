// Package wire reads single fields of an encoded protobuf message. The others are not decoded and take no memory.
package wire

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrInvalid is the error for bytes that are not an encoded message.
var ErrInvalid = errors.New("it is not a valid protobuf message")

// Fields calls visit with each field of a message that has bytes as its value (strings, bytes, messages, items of maps),
// in the message's order. It skips other fields. value is a part of data. Fields returns the first error of visit, or
// ErrInvalid.
func Fields(data []byte, visit func(number protowire.Number, value []byte) error) error {
	for len(data) > 0 {
		number, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return ErrInvalid
		}
		data = data[n:]
		if n = protowire.ConsumeFieldValue(number, typ, data); n < 0 {
			return ErrInvalid
		}
		if typ == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(data)
			if err := visit(number, value); err != nil {
				return err
			}
		}
		data = data[n:]
	}
	return nil
}

// Field returns the value of the last field with a number, or nil. With more numbers it returns that field of the
// message in the field, and so on.
func Field(data []byte, numbers ...protowire.Number) ([]byte, error) {
	for _, wanted := range numbers {
		var last []byte
		err := Fields(data, func(number protowire.Number, value []byte) error {
			if number == wanted {
				last = value
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		data = last
	}
	return data, nil
}
