// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// Numbers of bpf(2) and of its commands: enum bpf_cmd of <linux/bpf.h>, fixed for all time.
const (
	mapUpdateElem = 2
	mapDeleteElem = 3
	objectGet     = 7
)

// elementAttr is the part of union bpf_attr that the commands on one element read.
type elementAttr struct {
	fd    uint32
	_     uint32
	key   uint64
	value uint64
	flags uint64
}

// objectAttr is the part that BPF_OBJ_GET reads.
type objectAttr struct {
	path  uint64
	fd    uint32
	flags uint32
}

// Map is a pinned map, written one entry for each system call.
type Map struct{ fd uint32 }

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (uintptr, error) {
	answer, _, code := syscall.Syscall(systemCall, command, uintptr(attr), size)
	if code != 0 {
		return 0, code
	}
	return answer, nil
}

// OpenMap opens the map that is pinned at path.
func OpenMap(path string) (*Map, error) {
	name, err := syscall.BytePtrFromString(path)
	if err != nil {
		return nil, err
	}
	attr := objectAttr{path: uint64(uintptr(unsafe.Pointer(name)))}
	fd, err := bpf(objectGet, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(name)
	if err != nil {
		return nil, &os.PathError{Op: "open map", Path: path, Err: err}
	}
	return &Map{uint32(fd)}, nil
}

// Apply makes one change. A key that is to be deleted and is not there is no error.
func (m *Map) Apply(change *Change) error {
	if len(change.Key) != keyBytes || change.Add && len(change.Value) != valueBytes {
		return fmt.Errorf("change: wrong sizes (got %d and %d)", len(change.Key), len(change.Value))
	}
	attr := elementAttr{fd: m.fd, key: uint64(uintptr(unsafe.Pointer(&change.Key[0])))}
	command := uintptr(mapDeleteElem)
	if change.Add {
		command = mapUpdateElem
		attr.value = uint64(uintptr(unsafe.Pointer(&change.Value[0])))
	}
	_, err := bpf(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(change)
	if !change.Add && err == syscall.ENOENT {
		return nil
	}
	return err
}
