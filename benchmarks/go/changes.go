// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"os"
)

// A record of the file of changes: twin of RECORD in bridge/bench/recorded.py.
const (
	keyBytes    = 16
	valueBytes  = 24
	recordBytes = 8 + keyBytes + valueBytes // the operation first
	opUpdate    = 1                         // enum mapbridge_op; all others are deletes here
)

// Change is one change of a map, and what net/rpc carries.
type Change struct {
	Add   bool
	Key   []byte
	Value []byte
}

// Entry is a key and its value with the fields that the program gave them.
type Entry struct {
	Number   uint64 `json:"number"`
	Check    uint64 `json:"check"`
	Count    uint64 `json:"count"`
	Changed  uint64 `json:"changed"`
	Sequence uint64 `json:"sequence"`
}

// Entry takes the bytes apart.
func (c *Change) Entry() Entry {
	return Entry{
		Number:   binary.LittleEndian.Uint64(c.Key),
		Check:    binary.LittleEndian.Uint64(c.Key[8:]),
		Count:    binary.LittleEndian.Uint64(c.Value),
		Changed:  binary.LittleEndian.Uint64(c.Value[8:]),
		Sequence: binary.LittleEndian.Uint64(c.Value[16:]),
	}
}

// Change puts them together again.
func (e *Entry) Change(add bool) *Change {
	key, value := make([]byte, keyBytes), make([]byte, valueBytes)
	binary.LittleEndian.PutUint64(key, e.Number)
	binary.LittleEndian.PutUint64(key[8:], e.Check)
	binary.LittleEndian.PutUint64(value, e.Count)
	binary.LittleEndian.PutUint64(value[8:], e.Changed)
	binary.LittleEndian.PutUint64(value[16:], e.Sequence)
	return &Change{Add: add, Key: key, Value: value}
}

// Changes is a file of recorded changes, taken from the start again at its end.
type Changes struct {
	all []Change
	at  int
}

// ReadChanges reads a file whole.
func ReadChanges(path string) (*Changes, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 || len(data)%recordBytes != 0 {
		return nil, fmt.Errorf("%s: no whole records (got %d bytes)", path, len(data))
	}
	all := make([]Change, len(data)/recordBytes)
	for i := range all {
		record := data[i*recordBytes : (i+1)*recordBytes]
		all[i] = Change{
			Add:   binary.LittleEndian.Uint64(record) == opUpdate,
			Key:   record[8 : 8+keyBytes],
			Value: record[8+keyBytes:],
		}
	}
	return &Changes{all: all}, nil
}

// Next gives up to count changes.
func (c *Changes) Next(count int) []Change {
	if c.at == len(c.all) {
		c.at = 0
	}
	end := c.at + count
	if end > len(c.all) {
		end = len(c.all)
	}
	some := c.all[c.at:end]
	c.at = end
	return some
}
