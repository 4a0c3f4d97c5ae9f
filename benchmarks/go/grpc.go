// SPDX-License-Identifier: Apache-2.0

//go:build grpc

package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// messages.pb.go comes from ../sync.proto when this is built. Debian has no plugin for services, so
// what it would write stands here: one method for each rpc of the service Sync.
const service = "/mapbridge.benchmarks.Sync/"

// form is one of the two kinds of messages: how a change becomes one, and the other way round.
type form struct {
	name  string
	empty func() proto.Message
	write func(*Change) (proto.Message, error)
	read  func(proto.Message) (*Change, error)
}

var inAny = form{
	name:  "Any",
	empty: func() proto.Message { return &AnyChange{} },
	write: func(change *Change) (proto.Message, error) {
		text, err := json.Marshal(change.Entry())
		return &AnyChange{Add: change.Add, Details: &anypb.Any{Value: text}}, err
	},
	read: func(message proto.Message) (*Change, error) {
		var fields Entry
		change := message.(*AnyChange)
		err := json.Unmarshal(change.GetDetails().GetValue(), &fields)
		return fields.Change(change.Add), err
	},
}

var typed = form{
	name:  "Typed",
	empty: func() proto.Message { return &TypedChange{} },
	write: func(change *Change) (proto.Message, error) {
		d := change.Entry()
		return &TypedChange{Add: change.Add, Entry: &EntryMessage{
			Number: d.Number, Check: d.Check, Count: d.Count, Changed: d.Changed, Sequence: d.Sequence,
		}}, nil
	},
	read: func(message proto.Message) (*Change, error) {
		change := message.(*TypedChange)
		e := change.GetEntry()
		fields := Entry{
			e.GetNumber(), e.GetCheck(), e.GetCount(), e.GetChanged(), e.GetSequence(),
		}
		return fields.Change(change.Add), nil
	},
}

func (f form) apply(target *Map, message proto.Message) error {
	change, err := f.read(message)
	if err != nil {
		return err
	}
	return target.Apply(change)
}

func (f form) method() grpc.MethodDesc {
	handle := func(server any, _ context.Context, read func(any) error,
		_ grpc.UnaryServerInterceptor) (any, error) {
		message := f.empty()
		if err := read(message); err != nil {
			return nil, err
		}
		return &Done{Changes: 1}, f.apply(server.(*Map), message)
	}
	return grpc.MethodDesc{MethodName: "Apply" + f.name, Handler: handle}
}

func (f form) stream() grpc.StreamDesc {
	handle := func(server any, stream grpc.ServerStream) error {
		done := &Done{}
		for {
			message := f.empty()
			if err := stream.RecvMsg(message); err == io.EOF {
				return stream.SendMsg(done)
			} else if err != nil {
				return err
			}
			if err := f.apply(server.(*Map), message); err != nil {
				return err
			}
			done.Changes++
		}
	}
	return grpc.StreamDesc{StreamName: "Stream" + f.name, Handler: handle, ClientStreams: true}
}

func serveGRPC(target *Map, listener net.Listener) error {
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "mapbridge.benchmarks.Sync",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{inAny.method(), typed.method()},
		Streams:     []grpc.StreamDesc{inAny.stream(), typed.stream()},
	}, target)
	return server.Serve(listener)
}

func (f form) callUntil(to *grpc.ClientConn, changes *Changes, deadline time.Time) (int, error) {
	sent := 0
	for time.Now().Before(deadline) {
		message, err := f.write(&changes.Next(1)[0])
		if err != nil {
			return 0, err
		}
		if err := to.Invoke(context.Background(), service+"Apply"+f.name, message, &Done{}); err != nil {
			return 0, err
		}
		sent++
	}
	return sent, nil
}

func (f form) streamUntil(to *grpc.ClientConn, changes *Changes, deadline time.Time) (int, error) {
	kind := &grpc.StreamDesc{ClientStreams: true}
	stream, err := to.NewStream(context.Background(), kind, service+"Stream"+f.name)
	if err != nil {
		return 0, err
	}
	for time.Now().Before(deadline) {
		message, err := f.write(&changes.Next(1)[0])
		if err != nil {
			return 0, err
		}
		if err := stream.SendMsg(message); err != nil {
			return 0, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return 0, err
	}
	done := &Done{}
	err = stream.RecvMsg(done)
	return int(done.Changes), err
}

func connectGRPC(run func(*grpc.ClientConn, *Changes, time.Time) (int, error)) sender {
	return func(address string) (func(*Changes, time.Time) (int, error), error) {
		connection, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithBlock())
		if err != nil {
			return nil, err
		}
		return func(changes *Changes, deadline time.Time) (int, error) {
			return run(connection, changes, deadline)
		}, nil
	}
}

func init() {
	for _, f := range []struct {
		name string
		form form
	}{{"grpc-go-any", inAny}, {"grpc-go-typed", typed}} {
		receivers[f.name+"-entry"], receivers[f.name+"-stream"] = serveGRPC, serveGRPC
		senders[f.name+"-entry"] = connectGRPC(f.form.callUntil)
		senders[f.name+"-stream"] = connectGRPC(f.form.streamUntil)
	}
}
