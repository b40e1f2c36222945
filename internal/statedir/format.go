package statedir

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"
)

// A file has two lines and a body:
//
//	the header, in JSON
//	the SHA-256 of the header and the body, in hexadecimal
//	the body: the payload, which AES-256-GCM encrypts with the header as additional data if there is a key
//
// So a file that was damaged differs from one that another key encrypts: only the first has a wrong checksum.
const (
	format  = "usher-state"
	version = 1
)

// header is the first line of a file.
type header struct {
	Format    string    `json:"format"`
	Version   int       `json:"version"`
	Name      string    `json:"name"`
	Written   time.Time `json:"written"`
	Encrypted bool      `json:"encrypted"`
	Salt      []byte    `json:"salt,omitempty"` // from which, with the operator's key, the key of this file is derived
}

// badFile is why a file cannot be used.
type badFile string

// Error implements error.
func (e badFile) Error() string { return string(e) }

// encode returns the content of a file. With an empty key the payload is not encrypted.
func encode(name string, now time.Time, payload, key []byte) ([]byte, error) {
	h := header{Format: format, Version: version, Name: name, Written: now.UTC(), Encrypted: len(key) > 0}
	if h.Encrypted {
		h.Salt = make([]byte, sha256.Size)
		rand.Read(h.Salt) // it never fails
	}
	line, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	body := payload
	if h.Encrypted {
		sealer, err := newSealer(key, h.Salt)
		if err != nil {
			return nil, err
		}
		body = sealer.Seal(nil, nil, payload, line)
	}
	return bytes.Join([][]byte{line, []byte(checksum(line, body)), body}, []byte("\n")), nil
}

// decode returns the payload of a file, and when it was written. The error is a badFile.
func decode(name string, text, key []byte) (payload []byte, written time.Time, err error) {
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	sum, body, _ := bytes.Cut(rest, []byte("\n"))
	var h header
	if err := json.Unmarshal(line, &h); err != nil || h.Format != format {
		return nil, time.Time{}, badFile("it is damaged, or no state file of Usher")
	}
	if h.Version != version {
		return nil, time.Time{}, badFile("another version of Usher wrote it, in a format that this one does not know")
	}
	if string(sum) != checksum(line, body) {
		return nil, time.Time{}, badFile("it is damaged: its checksum is wrong")
	}
	if h.Name != name {
		return nil, time.Time{}, badFile("it is a copy of another state file")
	}
	payload, err = open(h, line, body, key)
	return payload, h.Written, err
}

// open returns the payload in a body. The file is undamaged.
func open(h header, line, body, key []byte) ([]byte, error) {
	encrypted := len(key) > 0
	switch {
	case h.Encrypted && !encrypted:
		return nil, badFile("it is encrypted, and Usher has no key")
	case !h.Encrypted && encrypted:
		// Without this, a file that anyone can forge would be as good as one that needs the key.
		return nil, badFile("it is not encrypted, although Usher has a key")
	case !encrypted:
		return body, nil
	}
	sealer, err := newSealer(key, h.Salt)
	if err != nil {
		return nil, badFile(err.Error())
	}
	payload, err := sealer.Open(nil, nil, body, line)
	if err != nil {
		return nil, badFile("it is encrypted with another key")
	}
	return payload, nil
}

func checksum(line, body []byte) string {
	h := sha256.New()
	h.Write(line)         // it never fails
	h.Write([]byte{'\n'}) // it never fails
	h.Write(body)         // it never fails
	return hex.EncodeToString(h.Sum(nil))
}

// newSealer returns the cipher for one file. Each file has its own key, which follows from the operator's key and the
// salt of the file.
func newSealer(key, salt []byte) (cipher.AEAD, error) {
	if len(salt) != sha256.Size {
		return nil, errors.New("its salt has a wrong length")
	}
	derived, err := hkdf.Key(sha256.New, key, salt, "usher state file", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
