// The original implementation of ttrpc as a peer for the Python one.
//
//	gopeer serve SOCKET    serves all kinds of call; exits when standard input ends
//	gopeer call SOCKET     makes all kinds of call to a server and prints "ok NAME" or "bad NAME ..."
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "voidbox.test.v1.Echo"

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gopeer serve|call SOCKET")
		os.Exit(2)
	}
	var err error
	if os.Args[1] == "serve" {
		err = serve(os.Args[2])
	} else {
		err = call(os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(path string) error {
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return err
	}
	server.RegisterService(service, description())
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = server.Close()
	}()
	fmt.Println("ready")
	err = server.Serve(context.Background(), listener)
	if errors.Is(err, ttrpc.ErrServerClosed) {
		return nil
	}
	return err
}

func description() *ttrpc.ServiceDesc {
	return &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{
			"Echo": func(ctx context.Context, decode func(interface{}) error) (interface{}, error) {
				request := &wrapperspb.StringValue{}
				if err := decode(request); err != nil {
					return nil, err
				}
				if values, ok := ttrpc.GetMetadataValue(ctx, "answer-with"); ok {
					return wrapperspb.String(values), nil
				}
				return request, nil
			},
			"Size": func(ctx context.Context, decode func(interface{}) error) (interface{}, error) {
				request := &wrapperspb.Int64Value{}
				if err := decode(request); err != nil {
					return nil, err
				}
				return wrapperspb.Bytes(make([]byte, request.Value)), nil
			},
			"Fail": func(ctx context.Context, decode func(interface{}) error) (interface{}, error) {
				return nil, status.Error(codes.NotFound, "there is no such thing")
			},
			"Block": func(ctx context.Context, decode func(interface{}) error) (interface{}, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
		},
		Streams: map[string]ttrpc.Stream{
			"Count": {StreamingServer: true, Handler: count},
			"Sum":   {StreamingClient: true, Handler: sum},
			"Chat":  {StreamingClient: true, StreamingServer: true, Handler: chat},
		},
	}
}

func count(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	request := &wrapperspb.Int64Value{}
	if err := stream.RecvMsg(request); err != nil {
		return nil, err
	}
	for number := int64(0); number < request.Value; number++ {
		if err := stream.SendMsg(wrapperspb.Int64(number)); err != nil {
			return nil, err
		}
	}
	if request.Value == 13 {
		return nil, status.Error(codes.NotFound, "unlucky")
	}
	return nil, nil
}

func sum(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	total := int64(0)
	for {
		request := &wrapperspb.Int64Value{}
		err := stream.RecvMsg(request)
		if errors.Is(err, io.EOF) {
			return wrapperspb.Int64(total), nil
		}
		if err != nil {
			return nil, err
		}
		total += request.Value
	}
}

func chat(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	for {
		request := &wrapperspb.StringValue{}
		err := stream.RecvMsg(request)
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if err := stream.SendMsg(wrapperspb.String(strings.ToUpper(request.Value))); err != nil {
			return nil, err
		}
	}
}

type check struct {
	name string
	run  func(context.Context, *ttrpc.Client) error
}

func call(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	for _, check := range checks() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := check.run(ctx, client)
		cancel()
		if err != nil {
			fmt.Printf("bad %s %v\n", check.name, err)
		} else {
			fmt.Printf("ok %s\n", check.name)
		}
	}
	return nil
}

func checks() []check {
	return []check{
		{"unary", unary},
		{"metadata", metadata},
		{"deadline", deadline},
		{"status", wantCode("Fail", wrapperspb.String("ours"), codes.NotFound)},
		{"unimplemented", wantCode("Nothing", wrapperspb.String(""), codes.Unimplemented)},
		{"large", large},
		{"too-long", wantCode("Size", wrapperspb.Int64(4<<20), codes.ResourceExhausted)},
		{"server-streaming", serverStreaming},
		{"streaming-error", streamingError},
		{"client-streaming", clientStreaming},
		{"bidi", bidi},
		{"concurrent", concurrent},
		{"unary-again", unary},
	}
}

func unary(ctx context.Context, client *ttrpc.Client) error {
	answer := &wrapperspb.StringValue{}
	if err := client.Call(ctx, service, "Echo", wrapperspb.String("hello"), answer); err != nil {
		return err
	}
	return want(answer.Value, "hello")
}

func metadata(ctx context.Context, client *ttrpc.Client) error {
	md := ttrpc.MD{}
	md.Set("answer-with", "metadata")
	answer := &wrapperspb.StringValue{}
	ctx = ttrpc.WithMetadata(ctx, md)
	if err := client.Call(ctx, service, "Echo", wrapperspb.String("x"), answer); err != nil {
		return err
	}
	return want(answer.Value, "metadata")
}

func deadline(ctx context.Context, client *ttrpc.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	answer := &wrapperspb.StringValue{}
	err := client.Call(ctx, service, "Block", wrapperspb.String(""), answer)
	if errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded {
		return nil
	}
	return fmt.Errorf("got %v", err)
}

func wantCode(
	method string, request interface{}, code codes.Code,
) func(context.Context, *ttrpc.Client) error {
	return func(ctx context.Context, client *ttrpc.Client) error {
		err := client.Call(ctx, service, method, request, &wrapperspb.BytesValue{})
		if status.Code(err) != code {
			return fmt.Errorf("got %v", err)
		}
		return nil
	}
}

func large(ctx context.Context, client *ttrpc.Client) error {
	answer := &wrapperspb.BytesValue{}
	size := int64(4<<20 - 64)
	if err := client.Call(ctx, service, "Size", wrapperspb.Int64(size), answer); err != nil {
		return err
	}
	return want(int64(len(answer.Value)), size)
}

func serverStreaming(ctx context.Context, client *ttrpc.Client) error {
	desc := &ttrpc.StreamDesc{StreamingServer: true}
	stream, err := client.NewStream(ctx, desc, service, "Count", wrapperspb.Int64(100))
	if err != nil {
		return err
	}
	for number := int64(0); ; number++ {
		item := &wrapperspb.Int64Value{}
		err := stream.RecvMsg(item)
		if errors.Is(err, io.EOF) {
			return want(number, int64(100))
		}
		if err != nil {
			return err
		}
		if err := want(item.Value, number); err != nil {
			return err
		}
	}
}

func streamingError(ctx context.Context, client *ttrpc.Client) error {
	desc := &ttrpc.StreamDesc{StreamingServer: true}
	stream, err := client.NewStream(ctx, desc, service, "Count", wrapperspb.Int64(13))
	if err != nil {
		return err
	}
	for {
		if err := stream.RecvMsg(&wrapperspb.Int64Value{}); err != nil {
			return want(status.Code(err), codes.NotFound)
		}
	}
}

func clientStreaming(ctx context.Context, client *ttrpc.Client) error {
	desc := &ttrpc.StreamDesc{StreamingClient: true}
	stream, err := client.NewStream(ctx, desc, service, "Sum", nil)
	if err != nil {
		return err
	}
	for number := int64(1); number <= 10; number++ {
		if err := stream.SendMsg(wrapperspb.Int64(number)); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	answer := &wrapperspb.Int64Value{}
	if err := stream.RecvMsg(answer); err != nil {
		return err
	}
	return want(answer.Value, int64(55))
}

func bidi(ctx context.Context, client *ttrpc.Client) error {
	desc := &ttrpc.StreamDesc{StreamingClient: true, StreamingServer: true}
	stream, err := client.NewStream(ctx, desc, service, "Chat", nil)
	if err != nil {
		return err
	}
	for _, word := range []string{"one", "", "three"} {
		if err := stream.SendMsg(wrapperspb.String(word)); err != nil {
			return err
		}
		answer := &wrapperspb.StringValue{}
		if err := stream.RecvMsg(answer); err != nil {
			return err
		}
		if err := want(answer.Value, strings.ToUpper(word)); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(&wrapperspb.StringValue{}); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after the end: %v", err)
	}
	return nil
}

func concurrent(ctx context.Context, client *ttrpc.Client) error {
	results := make(chan error)
	for range 200 {
		go func() { results <- unary(ctx, client) }()
	}
	var failed error
	for range 200 {
		if err := <-results; err != nil {
			failed = err
		}
	}
	return failed
}

func want[T comparable](got, wanted T) error {
	if got != wanted {
		return fmt.Errorf("got %v, want %v", got, wanted)
	}
	return nil
}
