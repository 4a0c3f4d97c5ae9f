// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/rpc"
	"time"
)

const blockChanges = 8192

// FieldsChange is a change in the way that state synchronisation sends it: field by field.
type FieldsChange struct {
	Add bool
	Entry
}

// Sync is what the receiver offers.
type Sync struct{ target *Map }

// Apply makes one change.
func (s *Sync) Apply(change FieldsChange, done *int) error {
	*done = 1
	return s.target.Apply(change.Entry.Change(change.Add))
}

// ApplyBlock makes many, one system call each.
func (s *Sync) ApplyBlock(changes []FieldsChange, done *int) error {
	for i := range changes {
		if err := s.target.Apply(changes[i].Entry.Change(changes[i].Add)); err != nil {
			return err
		}
	}
	*done = len(changes)
	return nil
}

// ApplyRawBlock takes keys and values as they are: less than any program in use does.
func (s *Sync) ApplyRawBlock(changes []Change, done *int) error {
	for i := range changes {
		if err := s.target.Apply(&changes[i]); err != nil {
			return err
		}
	}
	*done = len(changes)
	return nil
}

func serveRPC(target *Map, listener net.Listener) error {
	server := rpc.NewServer()
	if err := server.Register(&Sync{target}); err != nil {
		return err
	}
	server.Accept(listener)
	return nil
}

func callEntry(client *rpc.Client, changes *Changes) (int, error) {
	change, done := changes.Next(1)[0], 0
	err := client.Call("Sync.Apply", FieldsChange{change.Add, change.Entry()}, &done)
	return done, err
}

func callBlock(client *rpc.Client, changes *Changes) (int, error) {
	some, done := changes.Next(blockChanges), 0
	block := make([]FieldsChange, len(some))
	for i := range some {
		block[i] = FieldsChange{some[i].Add, some[i].Entry()}
	}
	err := client.Call("Sync.ApplyBlock", block, &done)
	return done, err
}

func callRawBlock(client *rpc.Client, changes *Changes) (int, error) {
	done := 0
	err := client.Call("Sync.ApplyRawBlock", changes.Next(blockChanges), &done)
	return done, err
}

func callUntil(call func(*rpc.Client, *Changes) (int, error)) sender {
	return func(address string) (func(*Changes, time.Time) (int, error), error) {
		client, err := rpc.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		return func(changes *Changes, deadline time.Time) (int, error) {
			sent := 0
			for time.Now().Before(deadline) {
				done, err := call(client, changes)
				if err != nil {
					return 0, err
				}
				sent += done
			}
			return sent, nil
		}, nil
	}
}

func init() {
	for name, call := range map[string]func(*rpc.Client, *Changes) (int, error){
		"netrpc-entry":     callEntry,
		"netrpc-block":     callBlock,
		"netrpc-raw-block": callRawBlock,
	} {
		receivers[name], senders[name] = serveRPC, callUntil(call)
	}
}
