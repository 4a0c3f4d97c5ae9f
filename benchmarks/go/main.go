// SPDX-License-Identifier: Apache-2.0

// Carries changes of a map to another process the way that state synchronisation of eBPF maps was
// done before: with net/rpc or gRPC, one bpf(2) call for each entry on the other side.
//
//	peer receive TRANSPORT MAP                  prints "ready HOST:PORT", serves until stdin ends
//	peer send TRANSPORT CHANGES ADDRESS SECONDS  prints "ready"; after a line on stdin it sends,
//	                                            and prints {"changes": n, "seconds": s} when the
//	                                            other side has acknowledged all; then waits for the
//	                                            end of stdin
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

// A receiver serves connections; a sender sends until the deadline and says how many changes.
type (
	receiver func(target *Map, listener net.Listener) error
	sender   func(address string) (func(changes *Changes, deadline time.Time) (int, error), error)
)

var (
	receivers = map[string]receiver{}
	senders   = map[string]sender{}
)

func receive(transport, path string) error {
	serve, known := receivers[transport]
	if !known {
		return fmt.Errorf("%s: not built in", transport)
	}
	target, err := OpenMap(path)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- serve(target, listener) }()
	fmt.Println("ready", listener.Addr())
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case err := <-failed:
		return err
	case <-ended:
		return nil
	}
}

func send(transport, path, address, duration string) error {
	connect, known := senders[transport]
	if !known {
		return fmt.Errorf("%s: not built in", transport)
	}
	seconds, err := strconv.ParseFloat(duration, 64)
	if err != nil {
		return err
	}
	changes, err := ReadChanges(path)
	if err != nil {
		return err
	}
	run, err := connect(address)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	input := bufio.NewReader(os.Stdin)
	if _, err := input.ReadString('\n'); err != nil {
		return err
	}
	began := time.Now()
	count, err := run(changes, began.Add(time.Duration(seconds*float64(time.Second))))
	if err != nil {
		return err
	}
	result := map[string]any{"changes": count, "seconds": time.Since(began).Seconds()}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, input)
	return err
}

func main() {
	err := fmt.Errorf("usage: peer receive TRANSPORT MAP | send TRANSPORT CHANGES ADDRESS SECONDS")
	switch {
	case len(os.Args) == 4 && os.Args[1] == "receive":
		err = receive(os.Args[2], os.Args[3])
	case len(os.Args) == 6 && os.Args[1] == "send":
		err = send(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
