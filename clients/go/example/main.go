// A client of the sandbox service: it creates, reads, lists, updates and watches a sandbox, and shows that a write that
// is sent twice is done once.
//
//	example HOST:PORT
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	sandboxv1 "example.com/you/client/gen/sandbox/v1"
)

const callTimeout = 20 * time.Second

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: example HOST:PORT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, target string) error {
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A server that stands still is noticed within seconds. gRPC for Go pings no more often than this.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 2 * time.Second}),
	)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := sandboxv1.NewSandboxServiceClient(conn)
	// The messages of this program are of version 2.
	ctx = metadata.AppendToOutgoingContext(ctx, "sandbox-schema-version", "2", "baton-client", "go-example")

	create := &sandboxv1.CreateSandboxRequest{
		RequestId: uuid.NewString(),
		Sandbox: &sandboxv1.Sandbox{
			Account: "acme",
			Spec:    &sandboxv1.SandboxSpec{Image: "debian:13", CpuMillis: 500},
		},
	}
	created, err := retry(ctx, create, client.CreateSandbox)
	if err != nil {
		return err
	}
	fmt.Println("created", created.GetName())
	again, err := retry(ctx, create, client.CreateSandbox)
	if err != nil {
		return err
	}
	fmt.Println("again", again.GetName(), again.GetRevision() == created.GetRevision())

	got, err := retry(ctx, &sandboxv1.GetSandboxRequest{Name: created.GetName()}, client.GetSandbox)
	if err != nil {
		return err
	}
	fmt.Println("got", got.GetName(), got.GetSpec().GetImage())

	count, err := list(ctx, client)
	if err != nil {
		return err
	}
	fmt.Println("listed", count)

	updated, err := retry(ctx, &sandboxv1.UpdateSandboxRequest{
		RequestId:  uuid.NewString(),
		Sandbox:    &sandboxv1.Sandbox{Name: got.GetName(), Etag: got.GetEtag(), Labels: map[string]string{"team": "blue"}},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
	}, client.UpdateSandbox)
	if err != nil {
		return err
	}
	fmt.Println("updated", updated.GetName(), updated.GetLabels()["team"])

	_, err = retry(ctx, &sandboxv1.GetSandboxRequest{Name: "sandboxes/none"}, client.GetSandbox)
	fmt.Println("refused", status.Code(err), reason(err))
	return watch(ctx, client, updated)
}

// list counts the sandboxes, page by page.
func list(ctx context.Context, client sandboxv1.SandboxServiceClient) (int, error) {
	count, request := 0, &sandboxv1.ListSandboxesRequest{PageSize: 100}
	for {
		page, err := retry(ctx, request, client.ListSandboxes)
		if err != nil {
			return 0, err
		}
		count += len(page.GetSandboxes())
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return count, nil
		}
	}
}

// watch returns when it has shown the sandbox as it is now. A watch that its server ends goes on with its token.
func watch(ctx context.Context, client sandboxv1.SandboxServiceClient, wanted *sandboxv1.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	request := &sandboxv1.WatchSandboxesRequest{Filter: `account = "acme"`}
	for failed := 0; ; failed++ {
		stream, err := client.WatchSandboxes(ctx, request)
		for err == nil {
			var answer *sandboxv1.WatchSandboxesResponse
			if answer, err = stream.Recv(); err != nil {
				break
			}
			failed, request.ResumeToken = 0, answer.GetResumeToken()
			for _, sandbox := range answer.GetSandboxes() {
				if sandbox.GetName() == wanted.GetName() && sandbox.GetRevision() >= wanted.GetRevision() {
					fmt.Println("watched", sandbox.GetName(), sandbox.GetLabels()["team"])
					return nil
				}
			}
		}
		if err := pause(ctx, err, failed); err != nil {
			return err
		}
	}
}

type method[Request, Answer any] func(context.Context, Request, ...grpc.CallOption) (Answer, error)

// retry sends the same request, so the same request id, until it is answered, cannot succeed, or is out of time.
func retry[Request, Answer any](ctx context.Context, request Request, call method[Request, Answer]) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for failed := 0; ; failed++ {
		answer, err := call(ctx, request)
		if err == nil {
			return answer, nil
		}
		if err := pause(ctx, err, failed); err != nil {
			return answer, err
		}
	}
}

// pause waits until the next attempt, and returns the error if another attempt cannot help.
func pause(ctx context.Context, err error, failed int) error {
	wait := 50 * time.Millisecond << min(failed, 5)
	asked, found := retryDelay(err)
	switch code := status.Code(err); {
	case code == codes.Unavailable:
	// With a reason and without a delay a retry cannot help: an etag that does not match will not match later.
	case found && (code == codes.Aborted || code == codes.ResourceExhausted):
	default:
		return err
	}
	select {
	case <-time.After(max(wait, asked)):
		return nil
	case <-ctx.Done():
		return errors.Join(err, ctx.Err())
	}
}

func retryDelay(err error) (time.Duration, bool) {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

// reason is for programs, as the code is: stable.
func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}
